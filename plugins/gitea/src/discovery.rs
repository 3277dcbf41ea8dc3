//! Which repositories the token's user works on: their own, then those of each organisation. A cursor is `own.PAGE` or
//! `PAGE.REPOSITORIES.NAME`: page of organisations, page of one's repositories, its name (empty: the first on the page).
//! Names, because an organisation that is removed meanwhile must not hide those behind it.

use harmonia_plugin::forge::{Error, RepositoryPage};
use harmonia_plugin::http;
use serde::Deserialize;

use crate::PER_PAGE;
use crate::api::Api;
use crate::model::Repository;

#[derive(Deserialize)]
struct Organization {
    username: Option<String>,
    name: Option<String>,
}

/// Where we are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cursor {
    Own(String),
    Organizations { page: u32, repositories: String, name: String },
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let is_page = |page: &str| !page.is_empty() && page.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(page) = text.strip_prefix("own.") {
            return is_page(page).then(|| Self::Own(page.to_owned()));
        }
        let mut parts = text.splitn(3, '.');
        let page = parts.next()?.parse().ok()?;
        let repositories = parts.next().filter(|page| is_page(page))?.to_owned();
        Some(Self::Organizations { page, repositories, name: parts.next()?.to_owned() })
    }

    fn text(&self) -> String {
        match self {
            Self::Own(page) => format!("own.{page}"),
            Self::Organizations { page, repositories, name } => format!("{page}.{repositories}.{name}"),
        }
    }
}

fn first_of(page: u32, name: &str) -> Cursor {
    Cursor::Organizations { page, repositories: "1".to_owned(), name: name.to_owned() }
}

impl Organization {
    fn name(&self) -> &str {
        self.username.as_deref().or(self.name.as_deref()).unwrap_or_default()
    }
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
            (found, Some(next.map_or_else(|| first_of(1, ""), Cursor::Own)))
        }
        Cursor::Organizations { page, repositories: of, name: wanted } => {
            let url = http::query(&api.url(&["user", "orgs"]), &[("limit", PER_PAGE), ("page", &page.to_string())]);
            let answer = api.get(&url)?;
            let more = answer.link("next").is_some();
            let organizations: Vec<Organization> = answer.json()?;
            let place = organizations.iter().position(|found| wanted.is_empty() || found.name() == wanted);
            let Some(place) = place else {
                // It is gone, and what was behind it moved up: we begin again. To name a repository twice does no harm.
                let next = (!wanted.is_empty()).then(|| first_of(1, "").text());
                return Ok(RepositoryPage { repositories: Vec::new(), next });
            };
            let name = organizations[place].name();
            let (found, next) = match repositories(&api, &api.url(&["orgs", name, "repos"]), &of) {
                // Gone since the list was made.
                Err(Error::NotFound) => (Vec::new(), None),
                other => other?,
            };
            let next = match (next, organizations.get(place + 1)) {
                (Some(repositories), _) => Some(Cursor::Organizations { page, repositories, name: name.to_owned() }),
                (None, Some(following)) => Some(first_of(page, following.name())),
                (None, None) => more.then(|| first_of(page + 1, "")),
            };
            (found, next)
        }
    };
    let repositories = found.into_iter().filter(Repository::is_useful).map(Into::into).collect();
    Ok(RepositoryPage { repositories, next: next.map(|next| next.text()) })
}

fn repositories(api: &Api, url: &str, page: &str) -> Result<(Vec<Repository>, Option<String>), Error> {
    let answer = api.get(&http::query(url, &[("limit", PER_PAGE), ("page", page)]))?;
    let next = answer.next_page();
    Ok((answer.json()?, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_their_text() {
        for cursor in [Cursor::Own("3".to_owned()), first_of(2, ""), first_of(2, "a.b")] {
            assert_eq!(Cursor::parse(&cursor.text()), Some(cursor));
        }
        for odd in ["", "own.", "own.x", "1.2", "1.x.y", "-1.1.x"] {
            assert_eq!(Cursor::parse(odd), None, "{odd}");
        }
    }
}
