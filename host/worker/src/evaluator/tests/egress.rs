//! What an evaluation says when an input is where evaluated code must not go.

use super::*;
use crate::test_parts::GitServer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_on_a_private_address_is_fetched_when_the_operator_lists_it_and_else_named() {
    let inputs = Repositories::new();
    let dir = inputs.create("input");
    std::fs::write(dir.join("name"), "fetched").expect("file");
    let rev = inputs.commit("input", "one");
    let branch = inputs.git("input", &["branch", "--show-current"]);
    let server = GitServer::start(inputs.dir.path(), None).await;
    let url = format!("http://{}/input/.git", server.address);
    let flake = format!(
        "{{ inputs.dep = {{ url = \"git+{url}\"; flake = false; }};
            outputs = {{ self, dep }}: let {MAKE} in {{
              checks.x86_64-linux.a = mk (builtins.readFile \"${{dep}}/name\") {{ }}; }}; }}"
    );
    let lock = serde_json::json!({
        "nodes": {
            "dep": {
                "flake": false,
                "locked": { "type": "git", "url": url, "rev": rev, "ref": branch },
                "original": { "type": "git", "url": url },
            },
            "root": { "inputs": { "dep": "dep" } },
        },
        "root": "root",
        "version": 7,
    });
    let files = [("flake.nix", flake.as_str()), ("flake.lock", &lock.to_string())];
    for is_listed in [false, true] {
        let allow_hosts =
            if is_listed { vec![format!("http://{}", server.address).parse().expect("a grant")] } else { vec![] };
        let change = |options: &mut EvaluatorOptions| {
            options.network = true;
            options.allow_hosts = allow_hosts;
        };
        let world = World::start_as(async |database| database.db.clone(), change).await;
        let id = world.queue("repo", &files, None).await;
        let view = world.ended(id).await;
        let said = format!("{:?} {:?}", view.evaluation, view.attrs);
        if is_listed {
            assert!(said.contains("-fetched.drv"), "{said}");
        } else {
            assert!(said.contains("may not be reached") && said.contains("`eval.allow_hosts`"), "{said}");
            assert!(said.contains(&server.address), "{said}");
            assert_eq!(server.seen(), [], "it was called");
        }
        world.stop().await;
    }
}
