//! Which repositories the App can see: those of each installation, page by page. A cursor is `PAGE.INDEX.REPOSITORIES`: page of
//! installations, place in it, page of that one's repositories.

use harmonia_plugin::forge::{Error, RepositoryPage};
use harmonia_plugin::{http, log};
use serde::Deserialize;

use crate::api::{Api, App};
use crate::model::Repository;

const PER_PAGE: usize = 100;

#[derive(Deserialize)]
struct Installation {
    id: u64,
    suspended_at: Option<String>,
}

#[derive(Deserialize)]
struct Repositories {
    repositories: Vec<Repository>,
}

/// Where we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    page: u32,
    index: usize,
    repositories: u32,
}

impl Cursor {
    const START: Self = Self { page: 1, index: 0, repositories: 1 };

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let cursor = Self {
            page: parts.next()?.parse().ok()?,
            index: parts.next()?.parse().ok()?,
            repositories: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(cursor)
    }

    fn text(self) -> String {
        format!("{}.{}.{}", self.page, self.index, self.repositories)
    }
}

/// One page.
pub(crate) fn page(cursor: Option<&str>) -> Result<RepositoryPage, Error> {
    let at = match cursor {
        None => Cursor::START,
        Some(text) => Cursor::parse(text).ok_or_else(|| Error::invalid(format!("`{text}` is no cursor of ours")))?,
    };
    let app = App::open()?;
    let url = http::url(&app.server.api_url, &["app", "installations"]);
    let installations: Vec<Installation> =
        app.get(&http::query(&url, &[("per_page", "100"), ("page", &at.page.to_string())]))?.json()?;
    let Some(installation) = installations.get(at.index) else {
        return Ok(RepositoryPage { repositories: Vec::new(), next: None });
    };
    let mut repositories = Vec::new();
    let mut full = false;
    if installation.suspended_at.is_none() {
        match repositories_of(app, installation.id, at.repositories) {
            Ok(found) => {
                full = found.len() == PER_PAGE;
                repositories = found.into_iter().map(Into::into).collect();
            }
            // Removed since the list was made.
            Err(Error::NotFound) => log::info(format!("installation {} is gone", installation.id)),
            Err(error) => return Err(error),
        }
    }
    let next = next(at, full, installations.len()).map(Cursor::text);
    Ok(RepositoryPage { repositories, next })
}

fn repositories_of(app: App, installation: u64, page: u32) -> Result<Vec<Repository>, Error> {
    let api = Api::for_installation(app, installation)?;
    let url = http::url(&api.server().api_url, &["installation", "repositories"]);
    let found: Repositories =
        api.get(&http::query(&url, &[("per_page", "100"), ("page", &page.to_string())]))?.json()?;
    Ok(found.repositories)
}

/// Where to go on after a page of repositories that was full or not, with so many installations on this page of them.
fn next(at: Cursor, full: bool, installations: usize) -> Option<Cursor> {
    if full {
        Some(Cursor { repositories: at.repositories + 1, ..at })
    } else if at.index + 1 < installations {
        Some(Cursor { index: at.index + 1, repositories: 1, ..at })
    } else {
        (installations == PER_PAGE).then_some(Cursor { page: at.page + 1, ..Cursor::START })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_of_every_installation_is_visited() {
        let at = Cursor { page: 1, index: 0, repositories: 3 };
        assert_eq!(next(at, true, 2), Some(Cursor { repositories: 4, ..at }));
        assert_eq!(next(at, false, 2), Some(Cursor { page: 1, index: 1, repositories: 1 }));
        let last = Cursor { index: 1, ..at };
        assert_eq!(next(last, false, 2), None);
        let end = Cursor { index: 99, ..at };
        assert_eq!(next(end, false, 100), Some(Cursor { page: 2, index: 0, repositories: 1 }));
    }

    #[test]
    fn cursors_survive_their_text() {
        let at = Cursor { page: 2, index: 17, repositories: 3 };
        assert_eq!(Cursor::parse(&at.text()), Some(at));
        for odd in ["", "1", "1.2", "1.2.x", "1.2.3.4", "-1.0.1"] {
            assert_eq!(Cursor::parse(odd), None, "{odd}");
        }
    }
}
