//! Pages of lists: `per_page` (30 unless asked for, at most 100), `page`, and the `Link` header.

use serde_json::Value;

use super::Github;
use crate::server::{Request, Response};

const PER_PAGE: usize = 30;
const PER_PAGE_MAX: usize = 100;

/// One page of a list.
pub(super) struct Page {
    pub(super) items: Vec<Value>,
    pub(super) total: usize,
    link: Option<String>,
}

impl Github {
    /// Cuts a page out of `all`. `repository`: links name the repository by its id, as GitHub's do.
    pub(super) fn page(
        &self,
        request: &Request,
        query: &[(String, String)],
        repository: Option<u64>,
        all: Vec<Value>,
    ) -> Page {
        let number = |name: &str| {
            query.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.parse::<usize>().ok())
        };
        let asked = number("per_page");
        if asked.is_some_and(|asked| asked > PER_PAGE_MAX) {
            self.core.violation(
                request,
                &format!("per_page is at most {PER_PAGE_MAX}: GitHub would send fewer than were asked for"),
            );
        }
        let per_page = asked.unwrap_or(PER_PAGE).clamp(1, PER_PAGE_MAX);
        let page = number("page").unwrap_or(1).max(1);
        let total = all.len();
        let last = total.div_ceil(per_page).max(1);
        let mut links = Vec::new();
        let mut link = |number: usize, relation: &str| {
            let mut pairs = url::form_urlencoded::Serializer::new(String::new());
            for (name, value) in query.iter().filter(|(name, _)| name != "page") {
                pairs.append_pair(name, value);
            }
            pairs.append_pair("page", &number.to_string());
            let path = linked_path(&request.path, repository);
            links.push(format!("<{}{path}?{}>; rel=\"{relation}\"", self.core.url, pairs.finish()));
        };
        if page > 1 {
            link(page - 1, "prev");
        }
        if page < last {
            link(page + 1, "next");
            link(last, "last");
        }
        if page > 1 {
            link(1, "first");
        }
        let items = all.into_iter().skip((page - 1) * per_page).take(per_page).collect();
        Page { items, total, link: (!links.is_empty()).then(|| links.join(", ")) }
    }
}

impl Page {
    /// The answer around the list.
    pub(super) fn answer(self, body: impl FnOnce(Vec<Value>, usize) -> Value) -> Response {
        let response = Response::json(200, &body(self.items, self.total));
        match self.link {
            Some(link) => response.with("link", link),
            None => response,
        }
    }
}

fn linked_path(path: &str, repository: Option<u64>) -> String {
    let (prefix, rest) = match path.strip_prefix("/api/v3") {
        Some(rest) => ("/api/v3", rest),
        None => ("", path),
    };
    match (repository, rest.strip_prefix("/repos/").and_then(|rest| rest.splitn(3, '/').nth(2))) {
        (Some(id), Some(below)) => format!("{prefix}/repositories/{id}/{below}"),
        _ => path.to_owned(),
    }
}
