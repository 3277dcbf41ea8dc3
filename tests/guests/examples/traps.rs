//! Executes an instruction that nothing survives.

harmonia_test_guests::guest!(|_| {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    Ok(String::new())
});
