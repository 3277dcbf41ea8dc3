//! Uses the network while a forge waits for its webhook to be taken.

use harmonia_plugin::forge::Error;
use harmonia_plugin::forge::webhooks::{Delivery, Request, Webhooks};
use harmonia_plugin::{Description, Plugin, http};

struct Guest;

impl Plugin for Guest {
    fn describe() -> Description {
        Description::new("guest", "0.0.1", "Calls out from a webhook.")
    }
}

impl Webhooks for Guest {
    fn parse(request: Request) -> Result<Delivery, Error> {
        let url = String::from_utf8_lossy(&request.body).into_owned();
        let told = http::Request::get(url).send();
        Ok(Delivery { id: format!("{:?}", told.map(|answer| answer.status)), events: Vec::new() })
    }
}

harmonia_plugin::export!(Guest: forge[webhooks]);
