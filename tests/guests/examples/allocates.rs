//! Takes memory until there is none.

harmonia_test_guests::guest!(|_| {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        taken.push(std::hint::black_box(vec![1; 1 << 20]));
    }
});
