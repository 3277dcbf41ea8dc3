//! Lists that come page by page.

use super::Response;

impl Response {
    /// Number of the next page: the parameter `page` of the `Link` header's target with the relation `next`. None: this is
    /// the last page.
    pub fn next_page(&self) -> Option<String> {
        let (_, query) = self.link("next")?.split_once('?')?;
        let page = query.split('&').find_map(|pair| pair.strip_prefix("page="))?;
        (!page.is_empty() && page.bytes().all(|byte| byte.is_ascii_digit())).then(|| page.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Header, Response};

    #[test]
    fn pages_are_numbers() {
        let next = |target: &str| {
            let link = Header { name: "Link".to_owned(), value: format!("<{target}>; rel=\"next\"") };
            Response { status: 200, headers: vec![link], body: Vec::new(), captured: Vec::new() }.next_page()
        };
        assert_eq!(next("https://x/y?per_page=100&page=7"), Some("7".to_owned()));
        for odd in ["https://x/y", "https://x/y?per_page=7", "https://x?page=", "https://x?page=a", ""] {
            assert_eq!(next(odd), None, "{odd}");
        }
    }
}
