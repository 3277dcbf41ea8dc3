//! Uses up its stack: the engine's, or with the argument `memory` the one that compilers keep in the guest's own memory for
//! whatever has an address.

#[inline(never)]
fn deeper(depth: u64) -> u64 {
    if depth == u64::MAX { 0 } else { deeper(depth + 1).rotate_left(1) ^ depth }
}

#[inline(never)]
fn deeper_in_memory(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { deeper_in_memory(depth + 1).wrapping_add(here[(depth % 64) as usize]) }
}

harmonia_test_guests::guest!(|argument| {
    let result = if argument == "memory" { deeper_in_memory(0) } else { deeper(0) };
    Ok(result.to_string())
});
