//! Uses every import that it was not granted, and answers what it was told, a line each.

use harmonia_plugin::http::Request;
use harmonia_plugin::kv::{self, Condition};
use harmonia_plugin::{secrets, settings};

harmonia_test_guests::guest!(|argument| {
    let mut told = vec![
        format!("setting: {:?}", settings::get("path")),
        format!("secret: {:?}", secrets::open("webhook").map(|_| "a secret")),
        format!("kept: {:?}", secrets::kept("other").map(|_| "a secret")),
    ];
    for url in argument.split(' ').filter(|url| !url.is_empty()) {
        told.push(format!("{url}: {:?}", Request::get(url).send().map(|answer| answer.status)));
    }
    told.push(format!("key: {:?}", kv::set(&"k".repeat(513), b"", None, Condition::Always)));
    told.push(format!("value: {:?}", kv::set("k", &vec![0; (64 << 10) + 1], None, Condition::Always)));
    told.push(format!("foreign: {:?}", kv::get("../other-plugin/key").map(|found| found.is_some())));
    Ok(told.join("\n"))
});
