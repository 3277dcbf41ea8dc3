//! Opens a secret again and again without ever closing it.

use harmonia_plugin::secrets;

harmonia_test_guests::guest!(|_| {
    let mut open = Vec::new();
    loop {
        match secrets::open("token") {
            Ok(secret) => open.push(secret),
            Err(error) => return Ok(format!("{} {error:?}", open.len())),
        }
    }
});
