//! Which repositories the App can see: those of each installation, page by page. A cursor is `PAGE.ID.REPOSITORIES`: page of
//! installations, id of one on it (0: the first), page of that one's repositories. Ids, because an installation that is
//! removed meanwhile must not hide those behind it: what discovery does not name counts as gone.

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
    installation: u64,
    repositories: u32,
}

impl Cursor {
    const START: Self = Self { page: 1, installation: 0, repositories: 1 };

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let cursor = Self {
            page: parts.next()?.parse().ok()?,
            installation: parts.next()?.parse().ok()?,
            repositories: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(cursor)
    }

    fn text(self) -> String {
        format!("{}.{}.{}", self.page, self.installation, self.repositories)
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
    let mut installations: Vec<Installation> =
        app.get(&http::query(&url, &[("per_page", "100"), ("page", &at.page.to_string())]))?.json()?;
    let listed = installations.len();
    // Nothing works while one is suspended.
    installations.retain(|installation| installation.suspended_at.is_none());
    let place = installations.iter().position(|found| at.installation == 0 || found.id == at.installation);
    let Some(place) = place else {
        let next = match at.installation {
            0 => next(at, false, None, listed),
            // It was removed, and what was behind it moved up: we begin again. To name a repository twice does no harm.
            _ => Some(Cursor::START),
        };
        return Ok(RepositoryPage { repositories: Vec::new(), next: next.map(Cursor::text) });
    };
    let installation = &installations[place];
    let mut repositories = Vec::new();
    let mut full = false;
    match repositories_of(app, installation.id, at.repositories) {
        Ok(found) => {
            full = found.len() == PER_PAGE;
            repositories = found.into_iter().map(Into::into).collect();
        }
        // Removed since the list was made.
        Err(Error::NotFound) => log::info(format!("installation {} is gone", installation.id)),
        Err(error) => return Err(error),
    }
    let here = Cursor { installation: installation.id, ..at };
    let following = installations.get(place + 1).map(|following| following.id);
    let next = next(here, full, following, listed).map(Cursor::text);
    Ok(RepositoryPage { repositories, next })
}

fn repositories_of(app: App, installation: u64, page: u32) -> Result<Vec<Repository>, Error> {
    let api = Api::for_installation(app, installation)?;
    let url = http::url(&api.server().api_url, &["installation", "repositories"]);
    let found: Repositories =
        api.get(&http::query(&url, &[("per_page", "100"), ("page", &page.to_string())]))?.json()?;
    Ok(found.repositories)
}

/// Where to go on after a page of repositories that was full or not, with this installation behind it and so many on the page.
fn next(at: Cursor, full: bool, following: Option<u64>, installations: usize) -> Option<Cursor> {
    match following {
        _ if full => Some(Cursor { repositories: at.repositories + 1, ..at }),
        Some(installation) => Some(Cursor { installation, repositories: 1, ..at }),
        None => (installations == PER_PAGE).then_some(Cursor { page: at.page + 1, ..Cursor::START }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_of_every_installation_is_visited() {
        let at = Cursor { page: 1, installation: 7, repositories: 3 };
        assert_eq!(next(at, true, Some(8), 2), Some(Cursor { repositories: 4, ..at }));
        assert_eq!(next(at, false, Some(8), 2), Some(Cursor { page: 1, installation: 8, repositories: 1 }));
        assert_eq!(next(at, false, None, 2), None);
        assert_eq!(next(at, false, None, 100), Some(Cursor { page: 2, installation: 0, repositories: 1 }));
    }

    #[test]
    fn cursors_survive_their_text() {
        let at = Cursor { page: 2, installation: 17, repositories: 3 };
        assert_eq!(Cursor::parse(&at.text()), Some(at));
        for odd in ["", "1", "1.2", "1.2.x", "1.2.3.4", "-1.0.1"] {
            assert_eq!(Cursor::parse(odd), None, "{odd}");
        }
    }
}
