//! Which repositories the app sees.

use std::collections::BTreeSet;

use harmonia_core::forge::ForgeError;

use super::setup::Github;

#[tokio::test]
async fn all_pages_of_all_installations_are_visited() {
    let github = Github::start().await;
    let (suspended, chosen) = {
        let mut world = github.fake.world();
        for number in 0..230 {
            world.add_repository(&format!("big/r{number:03}"));
        }
        world.add_repository("exact/only");
        for number in 0..3 {
            world.add_repository(&format!("some/r{number}"));
        }
        world.add_repository("asleep/r");
        world.add_repository("stranger/r");
        world.install("empty", None);
        world.install("big", None);
        let suspended = world.install("asleep", None);
        world.installations.get_mut(&suspended).expect("it is there").suspended = true;
        let chosen = world.install("some", Some(&["some/r1"]));
        world.install("exact", None);
        let site = world.repository_mut("exact/only");
        site.private = true;
        site.archived = true;
        site.default_branch = "trunk".to_owned();
        site.topics = vec!["nix".to_owned(), "ci".to_owned()];
        (suspended, chosen)
    };
    let (found, calls) = github.discover().await.expect("all is well");
    let names: BTreeSet<String> = found.iter().map(|repository| repository.full_name.clone()).collect();
    let mut expected: BTreeSet<String> = (0..230).map(|number| format!("big/r{number:03}")).collect();
    expected.extend(["exact/only".to_owned(), "some/r1".to_owned()]);
    assert_eq!((names, found.len()), (expected, 232), "each once");
    assert_eq!(calls, 6, "three pages, and one for each of the others that work");
    let exact = found.iter().find(|repository| repository.full_name == "exact/only").expect("it was found");
    assert!(exact.is_private && exact.is_archived);
    assert_eq!((exact.default_branch.as_str(), exact.topics.len()), ("trunk", 2));
    assert_eq!(exact.clone_url, format!("{}/exact/only.git", github.fake.url()));
    assert_eq!(exact.html_url, format!("{}/exact/only", github.fake.url()));
    assert_eq!(github.count("POST", &format!("/{suspended}/access_tokens")), 0, "a suspended one is left alone");
    assert_eq!(github.minted(), 4, "one token for each installation that works, whatever the pages");

    github.fake.world().uninstall(chosen);
    let (found, _) = github.discover().await.expect("all is well");
    assert_eq!(found.len(), 231);
    assert_eq!(github.minted(), 4, "tokens are kept from one discovery to the next");
    github.finish();
}

#[tokio::test]
async fn an_installation_that_goes_away_meanwhile_hides_no_other() {
    let github = Github::start().await;
    let [a, b, _] = ["a", "b", "c"].map(|owner| github.add(&format!("{owner}/r")).1);
    let first = github.page(None).await.expect("the first page");
    assert_eq!(first.items.len(), 1);
    // Both the one that was visited and the one whose turn it would be.
    github.fake.world().uninstall(a);
    github.fake.world().uninstall(b);
    let mut names = Vec::new();
    let mut cursor = first.next;
    while let Some(at) = cursor {
        let page = github.page(Some(at)).await.expect("a page");
        names.extend(page.items.into_iter().map(|repository| repository.full_name));
        cursor = page.next;
        assert!(names.len() < 10, "discovery does not end");
    }
    assert_eq!(names, ["c/r"]);
    github.finish();
}

#[tokio::test]
async fn more_installations_than_a_page_holds() {
    let github = Github::start().await;
    {
        let mut world = github.fake.world();
        for number in 0..203 {
            let id = world.install(&format!("o{number:03}"), None);
            // One at the beginning, none on the second page, one on the third.
            let suspended = !matches!(number, 0 | 1 | 202);
            world.installations.get_mut(&id).expect("it is there").suspended = suspended;
        }
        world.add_repository("o000/first");
        world.add_repository("o202/last");
    }
    let (found, calls) = github.discover().await.expect("all is well");
    let names: Vec<&str> = found.iter().map(|repository| repository.full_name.as_str()).collect();
    assert_eq!((names, calls), (vec!["o000/first", "o202/last"], 4), "no call for what is suspended");
    let odd = github.page(Some("no cursor of ours".to_owned())).await;
    assert!(matches!(odd, Err(ForgeError::Invalid(_))), "{odd:?}");
    github.finish();
}
