//! A repository of a forge for whole evaluations: git's own server, and a frontend that answers as it is told.

use harmonia_core::forge::ForgeRepository;

use super::*;
use crate::test_parts::GitServer;

impl World {
    /// Makes a repository with this flake; gives its first commit.
    pub(super) fn commit_flake(&self, name: &str, flake: &str) -> String {
        let dir = self.repositories.create(name);
        std::fs::write(dir.join("flake.nix"), flake).expect("file");
        self.repositories.commit(name, "first")
    }

    /// The repository of this name, served by a forge, as an enabled project; with the URL for git.
    pub(super) async fn forge_project(&self, server: &GitServer, name: &str) -> (ProjectId, String) {
        let full_name = format!("o/{name}");
        let repository = ForgeRepository {
            id: name.to_owned(),
            owner: "o".to_owned(),
            name: name.to_owned(),
            full_name: full_name.clone(),
            clone_url: format!("http://{}/{name}/.git", server.address),
            html_url: String::new(),
            default_branch: "main".to_owned(),
            is_private: false,
            is_archived: false,
            topics: Vec::new(),
        };
        let url = repository.clone_url.clone();
        let db = &self.database.db;
        db.upsert_repositories("forge", &[repository]).await.expect("upsert");
        let row = db.repository("forge", &full_name).await.expect("asked").expect("there");
        (db.enable_repository(row, &[full_name], "me").await.expect("enabled").0, url)
    }

    /// A frontend comes; it answers with what is in `script`.
    pub(super) async fn frontend(&self, script: &Arc<Mutex<Answer>>) -> TestServer {
        let scripted = Arc::clone(script);
        let server = TestServer::start(move |_| scripted.lock().expect("lock").clone()).await;
        let node = NodeRegistration {
            id: NodeId("frontend".to_owned()),
            incarnation: Incarnation(1),
            secret: harmonia_core::NodeSecret([0; 32]),
            capabilities: vec![Capability::Frontend],
            endpoint: Some(server.url.to_string()),
            systems: Vec::new(),
            features: Vec::new(),
            max_jobs: 0,
            max_evals: 0,
            version: "test".to_owned(),
        };
        self.database.db.register_node(&node).await.expect("registers");
        server
    }
}
