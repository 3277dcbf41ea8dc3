//! Panics with a text, which the operator should read: in the log, and as the plugin's last error.

use harmonia_plugin::secrets;

harmonia_test_guests::guest!(|argument| {
    // In hand, so that it is no longer found in what is shown.
    let _token = secrets::open("token");
    panic!("on purpose: {argument}")
});
