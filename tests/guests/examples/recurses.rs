//! Uses up its stack.

fn deeper(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { deeper(depth + 1).wrapping_add(here[(depth % 64) as usize]) }
}

harmonia_test_guests::guest!(|_| Ok(deeper(0).to_string()));
