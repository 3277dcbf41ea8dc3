//! The forge of a scenario: a fake GitHub or a fake Gitea, with its plugin. Start at [`Forge::start`]. What scenarios ask of
//! either is here, in words that mean the same for both.

use std::collections::BTreeMap;
use std::path::Path;

use harmonia_fake_forges::{
    Delivery, Event, FakeGitea, FakeGithub, Faults, InstallationAction, Permission, PullRequestAction, Recorded,
    RepositoryAction, When, WorldGuard,
};
use harmonia_plugin_harness::component;
use harmonia_plugin_host::{PluginSpec, SecretGrant};

/// The repository of every scenario.
pub(crate) const REPOSITORY: &str = "acme/site";
/// The name under which the forge is configured.
pub(crate) const FORGE: &str = "hub";
/// What Gitea's webhooks are signed with, once we installed them.
const HOOK_SECRET: &str = "a secret of the operator's";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Github,
    Gitea,
}

/// Makes a test of each journey, on each forge that can have it. A journey takes `&World`; what it asked of the forge is
/// held against the forge's description at its end.
macro_rules! journeys {
    (both: $($both:ident),*; github: $($github:ident),*; gitea: $($gitea:ident),*;) => {
        mod github {
            $(#[tokio::test] async fn $both() {
                crate::world::travel(crate::forge::Kind::Github, async |world| super::$both(world).await).await;
            })*
            $(#[tokio::test] async fn $github() {
                crate::world::travel(crate::forge::Kind::Github, async |world| super::$github(world).await).await;
            })*
        }
        mod gitea {
            $(#[tokio::test] async fn $both() {
                crate::world::travel(crate::forge::Kind::Gitea, async |world| super::$both(world).await).await;
            })*
            $(#[tokio::test] async fn $gitea() {
                crate::world::travel(crate::forge::Kind::Gitea, async |world| super::$gitea(world).await).await;
            })*
        }
    };
}
pub(crate) use journeys;

pub(crate) enum Forge {
    Github(FakeGithub),
    Gitea(FakeGitea),
}

impl Forge {
    /// A forge with one repository that our plugin may work with. `ada` may push, `eve` may not.
    pub(crate) async fn start(kind: Kind) -> Self {
        let forge = match kind {
            Kind::Github => {
                let fake = FakeGithub::start().await;
                fake.world().add_repository(REPOSITORY);
                fake.world().install("acme", None);
                Self::Github(fake)
            }
            Kind::Gitea => {
                let fake = FakeGitea::start().await;
                fake.add_repository(REPOSITORY);
                Self::Gitea(fake)
            }
        };
        {
            let mut world = forge.world();
            for user in ["ada", "eve"] {
                world.add_user(user);
            }
            world.repository_mut(REPOSITORY).collaborators.insert("ada".to_owned(), Permission::Write);
        }
        forge
    }

    /// Another repository, of another owner, that our plugin may work with.
    pub(crate) fn add_repository(&self, full_name: &str) {
        match self {
            Self::Github(fake) => {
                let mut world = fake.world();
                world.add_repository(full_name);
                world.install(full_name.split_once('/').expect("owner/name").0, None);
            }
            Self::Gitea(fake) => drop(fake.add_repository(full_name)),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Github(_) => Kind::Github,
            Self::Gitea(_) => Kind::Gitea,
        }
    }

    /// The plugin, configured for this forge; files of secrets go into `folder`.
    pub(crate) fn plugin(&self, folder: &Path) -> PluginSpec {
        let (mut spec, settings, secrets) = match self {
            Self::Github(fake) => (
                PluginSpec::new(FORGE, component("github")),
                vec![
                    ("app_id", fake.app_id().to_string()),
                    ("api_url", fake.url().to_owned()),
                    ("html_url", fake.url().to_owned()),
                    ("client_id", fake.client_id().to_owned()),
                ],
                vec![("webhook", fake.webhook_secret()), ("key", fake.private_key())],
            ),
            Self::Gitea(fake) => (
                PluginSpec::new(FORGE, component("gitea")),
                vec![("instance", fake.url().to_owned())],
                vec![("webhook", HOOK_SECRET), ("token", fake.token())],
            ),
        };
        let url = match self {
            Self::Github(fake) => fake.url(),
            Self::Gitea(fake) => fake.url(),
        };
        spec.allow_hosts = vec![url.parse().expect("a host")];
        spec.settings.extend(settings.into_iter().map(|(name, value)| (name.to_owned(), value)));
        for (name, value) in secrets {
            let file = folder.join(name);
            std::fs::write(&file, value).expect("a secret's file");
            spec.secrets.insert(name.to_owned(), SecretGrant { file, hosts: None });
        }
        spec
    }

    /// What the forge knows, to look at and to edit. Let go of it before the next `await`.
    pub(crate) fn world(&self) -> WorldGuard<'_> {
        match self {
            Self::Github(fake) => fake.world(),
            Self::Gitea(fake) => fake.world(),
        }
    }

    pub(crate) fn faults(&self) -> &Faults {
        match self {
            Self::Github(fake) => fake.faults(),
            Self::Gitea(fake) => fake.faults(),
        }
    }

    /// All requests since the last [`Self::forget`].
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        match self {
            Self::Github(fake) => fake.requests(),
            Self::Gitea(fake) => fake.requests(),
        }
    }

    /// Requests that are not what the forge has published.
    pub(crate) fn violations(&self) -> Vec<String> {
        match self {
            Self::Github(fake) => fake.violations(),
            Self::Gitea(fake) => fake.violations(),
        }
    }

    pub(crate) fn forget(&self) {
        match self {
            Self::Github(fake) => fake.forget(),
            Self::Gitea(fake) => fake.forget(),
        }
    }

    /// What the forge delivers of an event: of Gitea, to the webhook that we installed.
    pub(crate) fn delivery(&self, event: Event<'_>) -> Delivery {
        match self {
            Self::Github(fake) => fake.delivery(event),
            Self::Gitea(fake) => fake.delivery(event),
        }
    }

    /// The same, signed by somebody who does not know our secret.
    pub(crate) fn forged(&self, event: Event<'_>) -> Delivery {
        match self {
            Self::Github(fake) => fake.delivery_signed_with("another secret", event),
            Self::Gitea(fake) => fake.delivery_signed_with("another secret", event),
        }
    }

    /// The header that the forge signs in.
    pub(crate) fn signature(&self) -> &'static str {
        match self {
            Self::Github(_) => "x-hub-signature-256",
            Self::Gitea(_) => "x-gitea-signature",
        }
    }

    /// Requests that make a status where there is none.
    pub(crate) fn status_requests(&self) -> When {
        match self {
            Self::Github(_) => When::request("POST", "/check-runs"),
            Self::Gitea(_) => When::request("POST", "/statuses/"),
        }
    }

    /// What the repository is called now.
    fn name(&self) -> String {
        let world = self.world();
        let is_it = |repository: &&harmonia_fake_forges::Repository| {
            repository.full_name() == REPOSITORY || repository.former_names.iter().any(|name| name == REPOSITORY)
        };
        world.repositories.values().find(is_it).expect("it is there").full_name()
    }

    /// What the forge shows of a commit: context without its prefix → `pending`, `success`, `failure` or `error`.
    pub(crate) fn shown(&self, commit: &str) -> BTreeMap<String, String> {
        let pairs: Vec<(String, String)> = match self {
            Self::Github(fake) => {
                let state = |run: &harmonia_fake_forges::CheckRun| match run.conclusion.as_deref() {
                    None => "pending".to_owned(),
                    Some("cancelled") => "error".to_owned(),
                    Some(other) => other.to_owned(),
                };
                fake.check_runs(&self.name(), commit).iter().map(|(name, run)| (name.clone(), state(run))).collect()
            }
            Self::Gitea(fake) => {
                fake.statuses(&self.name(), commit).into_iter().map(|(name, status)| (name, status.state)).collect()
            }
        };
        pairs.into_iter().map(|(name, state)| (name.trim_start_matches("harmonia-ci/").to_owned(), state)).collect()
    }

    /// How often too many the forge was told of a commit: check runs beside the first of their name, and of commit statuses
    /// those that say what the one before them said.
    pub(crate) fn repetitions(&self, commit: &str) -> usize {
        let world = self.world();
        let repository = world.repository(REPOSITORY);
        match self {
            Self::Github(_) => {
                let runs = repository.check_runs.iter().filter(|run| run.head_sha == commit).count();
                runs - repository.newest_check_runs(commit).len()
            }
            Self::Gitea(_) => {
                let mut last = BTreeMap::new();
                let of_commit = repository.statuses.iter().filter(|status| status.sha == commit);
                let said = of_commit.map(|status| (&status.context, (&status.state, &status.description)));
                said.filter(|(context, said)| last.insert(*context, *said) == Some(*said)).count()
            }
        }
    }

    /// A branch is deleted: all that the forge then delivers.
    pub(crate) fn deletes_branch(&self, branch: &str) -> Vec<Delivery> {
        let reference = format!("refs/heads/{branch}");
        let before = self.world().repository_mut(REPOSITORY).branches.remove(branch).expect("there is one");
        let push = Event::Push {
            repository: REPOSITORY,
            reference: &reference,
            before: &before,
            after: &"0".repeat(40),
            pusher: "ada",
        };
        let mut deliveries = vec![self.delivery(push)];
        if self.kind() == Kind::Gitea {
            deliveries.insert(0, self.delivery(Event::Delete { repository: REPOSITORY, reference: &reference }));
        }
        deliveries
    }

    /// The repository gets another name: all that the forge delivers of that. Gitea says nothing.
    pub(crate) fn renames(&self, to: &str) -> Vec<Delivery> {
        self.world().rename(REPOSITORY, to);
        let from = REPOSITORY.split_once('/').expect("owner/name").1;
        match self {
            Self::Github(fake) => {
                vec![fake.delivery(Event::Repository { repository: to, action: RepositoryAction::Renamed { from } })]
            }
            Self::Gitea(_) => Vec::new(),
        }
    }

    /// `ada` may not push any more: what the forge delivers of that. Gitea says nothing.
    pub(crate) fn dismisses_ada(&self) -> Vec<Delivery> {
        self.world().repository_mut(REPOSITORY).collaborators.remove("ada");
        match self {
            Self::Github(fake) => {
                vec![fake.delivery(Event::Member { repository: REPOSITORY, user: "ada", action: "removed" })]
            }
            Self::Gitea(_) => Vec::new(),
        }
    }

    /// We may not work with the repository any more: the App is removed, or the token's user is no collaborator. GitHub
    /// tells, Gitea does not: there the next discovery notices.
    pub(crate) fn shuts_us_out(&self) -> Vec<Delivery> {
        match self {
            Self::Github(fake) => {
                let id = *fake.world().installations.keys().next().expect("installed");
                let delivery = fake.delivery(Event::Installation { id, action: InstallationAction::Deleted });
                fake.world().uninstall(id);
                vec![delivery]
            }
            Self::Gitea(fake) => {
                fake.world().repository_mut(REPOSITORY).collaborators.remove(fake.bot());
                Vec::new()
            }
        }
    }

    /// We may again. What was delivered meanwhile is not delivered again.
    pub(crate) fn lets_us_in(&self) -> Vec<Delivery> {
        match self {
            Self::Github(fake) => {
                let id = fake.world().install("acme", None);
                vec![fake.delivery(Event::Installation { id, action: InstallationAction::Created })]
            }
            Self::Gitea(fake) => {
                let bot = fake.bot().to_owned();
                fake.world().repository_mut(REPOSITORY).collaborators.insert(bot, Permission::Admin);
                Vec::new()
            }
        }
    }

    /// A pull request's event.
    pub(crate) fn of_pull_request(number: u64, action: PullRequestAction<'_>) -> Event<'_> {
        Event::PullRequest { repository: REPOSITORY, number, action }
    }
}
