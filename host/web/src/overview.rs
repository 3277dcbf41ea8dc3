//! What the home page shows of projects and evaluations, read once for all who look at about the same time: it counts the
//! attributes of everything that it lists, and many look, again and again. Start at [`Overviews::get`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::Viewer;
use harmonia_core::api::{Evaluation, Project};
use harmonia_db::{Db, DbError};
use tokio::sync::Mutex;

/// Newest evaluations shown.
const EVALUATIONS: u32 = 15;

/// Projects, and the newest evaluations of all of them.
pub(crate) struct Overview {
    pub(crate) projects: Vec<Project>,
    pub(crate) evaluations: Vec<Evaluation>,
}

/// The last one of each kind of viewer. Who asks while one is read waits for it.
#[derive(Default)]
pub(crate) struct Overviews {
    anybody: Mutex<Option<Read>>,
    known: Mutex<Option<Read>>,
}

struct Read {
    overview: Arc<Overview>,
    /// What changed later is not in it.
    began: Instant,
}

impl Overviews {
    /// An overview as this viewer (who is that of `db`) sees it, begun to be read no longer than `age_max` ago.
    pub(crate) async fn get(&self, viewer: Viewer, db: &Db, age_max: Duration) -> Result<Arc<Overview>, DbError> {
        let last = match viewer {
            Viewer::Public => &self.anybody,
            Viewer::Token => &self.known,
        };
        let asked = Instant::now();
        let mut last = last.lock().await;
        if let Some(read) = &*last
            && asked.saturating_duration_since(read.began) < age_max
        {
            return Ok(read.overview.clone());
        }
        let began = Instant::now();
        let (projects, evaluations) =
            tokio::try_join!(db.view_projects(), db.view_evaluations(None, None, EVALUATIONS))?;
        let overview = Arc::new(Overview { projects, evaluations });
        *last = Some(Read { overview: overview.clone(), began });
        Ok(overview)
    }
}
