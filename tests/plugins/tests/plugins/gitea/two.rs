//! Two instances, one component: a second Gitea is a few lines of configuration.

use std::path::Path;
use std::sync::Arc;

use harmonia_core::forge::{Event, ForgeError, RepositoryRef, StatusState};
use harmonia_core::ports::Plugins as _;
use harmonia_fake_forges::{Event as Happened, FakeGitea};
use harmonia_plugin_harness::component;
use harmonia_plugin_host::{HostOptions, HttpClient, HttpClientOptions, PluginHost, PluginSpec, SecretGrant};

use crate::bench::{Bench, StoppedClock, status};
use crate::watch::Watch;

fn spec(name: &str, fake: &FakeGitea, folder: &Path) -> PluginSpec {
    let mut spec = PluginSpec::new(name, component("gitea"));
    spec.settings.insert("instance".to_owned(), fake.url().to_owned());
    spec.allow_hosts.push(fake.url().parse().expect("a host"));
    for (secret, value) in [("token", fake.token()), ("webhook", &format!("the hook secret of {name}"))] {
        let file = folder.join(format!("{name}-{secret}"));
        std::fs::write(&file, value).expect("a file");
        spec.secrets.insert(secret.to_owned(), SecretGrant { file, hosts: None });
    }
    spec
}

#[tokio::test]
async fn two_instances_of_one_component_know_nothing_of_each_other() {
    let (one, two) = (FakeGitea::start().await, FakeGitea::start_forgejo().await);
    let folder = tempfile::tempdir().expect("a folder");
    let clock = StoppedClock::new();
    let watch = Watch::new(clock.clone());
    let host = PluginHost::new(HostOptions {
        cache_folder: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugin-cache"),
        scratch_folder: folder.path().join("scratch"),
        store: watch.clone(),
        clock,
        http: HttpClient::new(&HttpClientOptions::default()).expect("a client"),
    })
    .expect("a host");
    let specs = vec![spec("one", &one, folder.path()), spec("two", &two, folder.path())];
    let report = host.reload(specs.clone()).await;
    assert!(report.refused.is_empty(), "{report:?}");
    assert_eq!(host.forges(), ["one", "two"]);
    let bench = |name: &str| Bench { forge: host.forge(name).expect("a forge"), watch: Arc::clone(&watch) };
    let benches = [("one", &one, bench("one")), ("two", &two, bench("two"))];
    let mut heads = Vec::new();
    for (name, fake, bench) in &benches {
        // The same name on both.
        let id = fake.add_repository("acme/site");
        let head = fake.world().push("acme/site", "main", &format!("on {name}"));
        let site = RepositoryRef { id: id.to_string(), full_name: "acme/site".to_owned() };
        bench.install(&site).await.expect("a hook");
        heads.push((site, head));
    }
    // At once.
    let calls = benches.iter().zip(&heads).flat_map(|((_, _, bench), (site, head))| {
        (0..10).map(move |_| {
            let (bench, site, head) = (bench.clone(), site.clone(), head.clone());
            tokio::spawn(async move {
                assert_eq!(bench.head(&site, "main").await.expect("a head").commit, head);
                bench.report(&status(&site, &head, StatusState::Success)).await.expect("a status");
            })
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("the call is well");
    }
    for ((name, fake, bench), (_, head)) in benches.iter().zip(&heads) {
        assert_eq!(fake.statuses("acme/site", head).len(), 1);
        let (found, _) = bench.discover().await.expect("all is well");
        assert_eq!(found.len(), 1);
        assert!(found[0].clone_url.starts_with(fake.url()), "{name}");
        let reference = "refs/heads/main";
        let push = Happened::Push { repository: "acme/site", reference, before: head, after: head, pusher: "acme" };
        let delivery = fake.delivery(push);
        let Event::Push(push) = bench.event(&delivery).await else { panic!("a push") };
        assert_eq!(&push.commit, head);
        for (other, _, bench) in benches.iter().filter(|(other, ..)| other != name) {
            let refused = bench.webhook(&delivery).await;
            assert!(matches!(refused, Err(ForgeError::Denied(_))), "{other} took what {name} signed: {refused:?}");
        }
    }
    // One that goes away takes nothing with it.
    let report = host.reload(specs[1..].to_vec()).await;
    assert_eq!(
        (report.removed.as_slice(), report.unchanged.as_slice()),
        (&["one".to_owned()][..], &["two".to_owned()][..])
    );
    assert!(host.forge("one").is_none());
    let (_, _, bench) = &benches[1];
    bench.head(&heads[1].0, "main").await.expect("a head");
    for fake in [&one, &two] {
        assert_eq!(fake.violations(), Vec::<String>::new());
    }
    watch.assert_unseen(&[one.token().to_owned(), two.token().to_owned(), "the hook secret of".to_owned()]);
}
