//! Answers bytes that are no text.

harmonia_test_guests::guest!(|_| {
    // SAFETY: there is none; that is the point. The host has to notice.
    Ok(unsafe { String::from_utf8_unchecked(vec![0xff, 0xfe, 0xc0, 0x80]) })
});
