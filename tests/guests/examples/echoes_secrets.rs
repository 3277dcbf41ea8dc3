//! Sends its secret to a server that sends it back, in every shape that it can think of, and answers what it got to see.

use harmonia_plugin::http::Request;
use harmonia_plugin::{kv, log, secrets};

harmonia_test_guests::guest!(|argument| {
    let secret = secrets::open("token")?;
    let mut seen = Vec::new();
    let sent = [
        Request::get(argument).bearer(&secret).send(),
        Request::get(argument).basic("user", &secret).send(),
        Request::get(argument).secret_header(&secret, "x-custom", "").send(),
        Request::post(argument).form(&[("a", "SECRET_HERE")]).secret_in_body(&secret, "SECRET_HERE").send(),
        Request::post(argument)
            .json(&harmonia_plugin::json!({ "a": "SECRET_HERE" }))
            .secret_in_body(&secret, "SECRET_HERE")
            .send(),
    ];
    for answer in sent {
        match answer {
            Ok(answer) => {
                for header in &answer.headers {
                    seen.push(format!("{}: {}", header.name, header.value));
                }
                seen.push(answer.text());
            }
            Err(error) => seen.push(format!("{error:?}")),
        }
    }
    let mut captured = Request::get(argument).bearer(&secret).capture("/minted").send()?;
    seen.push(captured.text());
    if let Ok(minted) = captured.captured_secret(0) {
        seen.push(Request::get(argument).bearer(&minted).send()?.text());
    }
    let seen = seen.join("\n");
    log::info(&seen);
    kv::set("seen", seen.as_bytes(), Some(60), kv::Condition::Always)?;
    Ok(seen)
});
