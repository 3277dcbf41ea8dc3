//! Which repositories the token's user works on: their own, then those of each organisation. A cursor is `own.PAGE` or
//! `PAGE.INDEX.REPOSITORIES`: page of organisations, place in it, page of that one's repositories.

use harmonia_plugin::forge::{Error, RepositoryPage};
use harmonia_plugin::http;
use serde::Deserialize;

use crate::PER_PAGE;
use crate::api::Api;
use crate::model::{Repository, page_of};

#[derive(Deserialize)]
struct Organization {
    username: Option<String>,
    name: Option<String>,
}

/// Where we are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cursor {
    Own(String),
    Organizations { page: u32, index: usize, repositories: String },
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let is_page = |page: &str| !page.is_empty() && page.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(page) = text.strip_prefix("own.") {
            return is_page(page).then(|| Self::Own(page.to_owned()));
        }
        let mut parts = text.splitn(3, '.');
        let (page, index) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let repositories = parts.next().filter(|page| is_page(page))?.to_owned();
        Some(Self::Organizations { page, index, repositories })
    }

    fn text(&self) -> String {
        match self {
            Self::Own(page) => format!("own.{page}"),
            Self::Organizations { page, index, repositories } => format!("{page}.{index}.{repositories}"),
        }
    }
}

fn first_of(page: u32, index: usize) -> Cursor {
    Cursor::Organizations { page, index, repositories: "1".to_owned() }
}

/// One page.
pub(crate) fn page(cursor: Option<&str>) -> Result<RepositoryPage, Error> {
    let at = match cursor {
        None => Cursor::Own("1".to_owned()),
        Some(text) => Cursor::parse(text).ok_or_else(|| Error::invalid(format!("`{text}` is no cursor of ours")))?,
    };
    let api = Api::open()?;
    let (found, next) = match at {
        Cursor::Own(page) => {
            let (found, next) = repositories(&api, &api.url(&["user", "repos"]), &page)?;
            (found, Some(next.map_or_else(|| first_of(1, 0), Cursor::Own)))
        }
        Cursor::Organizations { page, index, repositories: of } => {
            let url = http::query(&api.url(&["user", "orgs"]), &[("limit", PER_PAGE), ("page", &page.to_string())]);
            let answer = api.get(&url)?;
            let more = answer.link("next").is_some();
            let organizations: Vec<Organization> = answer.json()?;
            let Some(organization) = organizations.get(index) else {
                return Ok(RepositoryPage { repositories: Vec::new(), next: None });
            };
            let name = organization.username.as_deref().or(organization.name.as_deref()).unwrap_or_default();
            let (found, next) = match repositories(&api, &api.url(&["orgs", name, "repos"]), &of) {
                // Gone since the list was made.
                Err(Error::NotFound) => (Vec::new(), None),
                other => other?,
            };
            let next = match next {
                Some(next) => Some(Cursor::Organizations { page, index, repositories: next }),
                None if index + 1 < organizations.len() => Some(first_of(page, index + 1)),
                None => more.then(|| first_of(page + 1, 0)),
            };
            (found, next)
        }
    };
    let repositories = found.into_iter().filter(Repository::is_useful).map(Into::into).collect();
    Ok(RepositoryPage { repositories, next: next.map(|next| next.text()) })
}

fn repositories(api: &Api, url: &str, page: &str) -> Result<(Vec<Repository>, Option<String>), Error> {
    let answer = api.get(&http::query(url, &[("limit", PER_PAGE), ("page", page)]))?;
    let next = answer.link("next").and_then(page_of);
    Ok((answer.json()?, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_their_text() {
        for cursor in [Cursor::Own("3".to_owned()), first_of(2, 17)] {
            assert_eq!(Cursor::parse(&cursor.text()), Some(cursor));
        }
        for odd in ["", "own.", "own.x", "1.2", "1.2.x", "1.2.3.4", "-1.0.1"] {
            assert_eq!(Cursor::parse(odd), None, "{odd}");
        }
    }
}
