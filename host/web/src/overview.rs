//! What the home page shows of projects and evaluations: it counts the attributes of everything that it lists, and many look,
//! again and again. Start at [`Overview::read`].

use harmonia_core::api::{Evaluation, Project};
use harmonia_db::{Db, DbError};

/// Newest evaluations shown.
const EVALUATIONS: u32 = 15;

/// Projects, and the newest evaluations of all of them.
pub(crate) struct Overview {
    pub(crate) projects: Vec<Project>,
    pub(crate) evaluations: Vec<Evaluation>,
}

impl Overview {
    /// As the viewer sees it whose `db` is.
    pub(crate) async fn read(db: &Db) -> Result<Self, DbError> {
        let (projects, evaluations) =
            tokio::try_join!(db.view_projects(), db.view_evaluations(None, None, EVALUATIONS))?;
        Ok(Self { projects, evaluations })
    }
}
