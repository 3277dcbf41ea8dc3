//! Which repositories the token's user works on.

use std::collections::BTreeSet;

use harmonia_core::forge::ForgeError;
use harmonia_fake_forges::Permission;

use super::setup::Gitea;

#[tokio::test]
async fn own_repositories_and_those_of_all_organizations() {
    let gitea = Gitea::start().await;
    let bot = gitea.fake.bot();
    {
        let mut world = gitea.fake.world();
        for number in 0..60 {
            world.add_organization(&format!("org.{number:02}")).members.insert(bot.to_owned());
        }
        for number in 0..60 {
            let name = format!("org.07/r{number:02}");
            world.add_repository(&name);
            // A team's: seen by the organisation's list only.
            world.repository_mut(&name).collaborators.insert(bot.to_owned(), Permission::Write);
        }
        world.add_repository("org.59/last").collaborators.insert(bot.to_owned(), Permission::Write);
        world.add_repository("org.58/unwritable");
        world.add_repository("stranger/thing");
        world.add_repository("alice/readable").collaborators.insert(bot.to_owned(), Permission::Read);
    }
    for number in 0..55 {
        gitea.add(&format!("bob/own{number:02}"));
    }
    let empty = gitea.add("bob/empty").0;
    gitea.fake.world().repository_mut(&empty.full_name).branches.clear();
    {
        let mut world = gitea.fake.world();
        let site = world.repository_mut("bob/own00");
        site.private = true;
        site.archived = true;
        site.default_branch = "trunk".to_owned();
        site.topics = vec!["nix".to_owned()];
    }
    let (found, calls) = gitea.discover().await.expect("all is well");
    let names: BTreeSet<String> = found.iter().map(|repository| repository.full_name.clone()).collect();
    let mut expected: BTreeSet<String> = (0..60).map(|number| format!("org.07/r{number:02}")).collect();
    expected.extend((0..55).map(|number| format!("bob/own{number:02}")));
    expected.insert("org.59/last".to_owned());
    assert_eq!(names, expected, "what is empty or cannot be written to is of no use");
    assert!(calls > 60, "pages are bounded: {calls}");
    let own = found.iter().find(|repository| repository.full_name == "bob/own00").expect("it was found");
    assert!(own.is_private && own.is_archived);
    assert_eq!((own.default_branch.as_str(), own.topics.as_slice()), ("trunk", &["nix".to_owned()][..]));
    assert_eq!(own.clone_url, format!("{}/bob/own00.git", gitea.fake.url()));
    let odd = gitea.page(Some("no cursor of ours".to_owned())).await;
    assert!(matches!(odd, Err(ForgeError::Invalid(_))), "{odd:?}");
    gitea.finish();
}

#[tokio::test]
async fn an_organization_that_goes_away_meanwhile_hides_no_other() {
    let gitea = Gitea::start().await;
    let bot = gitea.fake.bot();
    for name in ["a", "b", "c"] {
        gitea.fake.world().add_organization(name).members.insert(bot.to_owned());
        gitea.add(&format!("{name}/r"));
    }
    let own = gitea.page(None).await.expect("own ones");
    let first = gitea.page(own.next).await.expect("the first organisation");
    assert_eq!(first.items.len(), 1);
    for name in ["a", "b"] {
        gitea.fake.world().accounts.remove(name);
    }
    let (mut names, mut cursor) = (Vec::new(), first.next);
    while let Some(at) = cursor {
        let page = gitea.page(Some(at)).await.expect("a page");
        names.extend(page.items.into_iter().map(|repository| repository.full_name));
        cursor = page.next;
        assert!(names.len() < 10, "discovery does not end");
    }
    assert_eq!(names, ["c/r"]);
    gitea.finish();
}
