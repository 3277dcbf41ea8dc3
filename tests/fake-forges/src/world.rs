//! What a forge knows: accounts, repositories, pull requests and what was reported about commits. Tests edit it freely.

mod repository;

use std::collections::{BTreeMap, BTreeSet};

use time::OffsetDateTime;

pub use repository::{CheckRun, Comment, Commit, CommitStatus, Hook, Label, PullRequest, Repository};

/// The state of one forge.
pub struct World {
    /// People and organisations by login.
    pub accounts: BTreeMap<String, Account>,
    /// By id.
    pub repositories: BTreeMap<u64, Repository>,
    /// GitHub: where the app is installed, by id.
    pub installations: BTreeMap<u64, Installation>,
    /// Everything that may stand in `Authorization`. Remove one to revoke it.
    pub tokens: BTreeMap<String, Token>,
    /// Codes of logins that were approved and not yet exchanged.
    pub codes: BTreeMap<String, Code>,
    /// Who the browser that opens the authorisation page is logged in as; such a login is approved at once.
    pub browser_login: Option<String>,
    /// Redirect addresses that the OAuth application was registered with; empty: any.
    pub redirect_urls: Vec<String>,
    pub(crate) clock: Box<dyn Fn() -> OffsetDateTime + Send>,
    next_id: u64,
}

/// A person or an organisation.
#[derive(Clone, Debug)]
pub struct Account {
    /// The forge's stable id.
    pub id: u64,
    /// Name in URLs.
    pub login: String,
    /// Name for display.
    pub name: String,
    /// Whether it is an organisation.
    pub organization: bool,
    /// An organisation's members, by login.
    pub members: BTreeSet<String>,
}

/// GitHub: an installation of the app.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The forge's id.
    pub id: u64,
    /// Whose it is, by login.
    pub account: String,
    /// Repositories that it may see, by id; none: all of the account, also later ones.
    pub repositories: Option<BTreeSet<u64>>,
    /// While suspended nothing works.
    pub suspended: bool,
    /// `checks` → `write` and so on.
    pub permissions: BTreeMap<String, String>,
}

/// What a bearer of a token may do.
#[derive(Clone, Debug)]
pub enum Token {
    /// GitHub: an installation token.
    Installation {
        /// Of which installation.
        installation: u64,
        /// Refused from then on.
        expires_at: OffsetDateTime,
        /// Narrowed to these repositories when it was asked for.
        repositories: Option<BTreeSet<u64>>,
        /// Narrowed to these permissions when it was asked for.
        permissions: Option<BTreeMap<String, String>>,
    },
    /// Of a person: from a login, or made by hand (Gitea).
    User {
        /// Whose.
        login: String,
        /// Refused from then on; none: never.
        expires_at: Option<OffsetDateTime>,
    },
}

/// An approved login.
#[derive(Clone, Debug)]
pub struct Code {
    /// Who approved it.
    pub login: String,
    /// The exchange must name the same.
    pub redirect_url: String,
    /// PKCE, S256; none: the login did not use it.
    pub challenge: Option<String>,
    /// Ten minutes after it was issued.
    pub expires_at: OffsetDateTime,
}

/// What somebody may do with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Not even see it.
    None,
    /// Read.
    Read,
    /// GitHub: sort issues; no push.
    Triage,
    /// Push.
    Write,
    /// GitHub: nearly everything.
    Maintain,
    /// Everything.
    Admin,
}

impl Permission {
    /// As the permission endpoints name the role.
    pub(crate) fn role(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Triage => "triage",
            Self::Write => "write",
            Self::Maintain => "maintain",
            Self::Admin => "admin",
        }
    }

    /// The four levels that GitHub knew first; newer roles are mapped onto them.
    pub(crate) fn level(self) -> &'static str {
        match self {
            Self::Triage => "read",
            Self::Maintain => "write",
            other => other.role(),
        }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            accounts: BTreeMap::new(),
            repositories: BTreeMap::new(),
            installations: BTreeMap::new(),
            tokens: BTreeMap::new(),
            codes: BTreeMap::new(),
            browser_login: None,
            redirect_urls: Vec::new(),
            clock: Box::new(OffsetDateTime::now_utc),
            next_id: 1000,
        }
    }

    /// The forge's time: the machine's, unless a test set another clock.
    pub fn now(&self) -> OffsetDateTime {
        (self.clock)()
    }

    /// Makes the forge follow another clock, for tests with a time of their own.
    pub fn set_clock(&mut self, clock: impl Fn() -> OffsetDateTime + Send + 'static) {
        self.clock = Box::new(clock);
    }

    /// An id that nothing else of this forge has.
    pub fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// A commit hash that nothing else of this forge has.
    pub fn fresh_hash(&mut self) -> String {
        let id = self.fresh_id();
        // Spread over all digits (the multiplier of a well-known linear congruence), so that prefixes differ too.
        let spread = u128::from(id).wrapping_mul(0xda94_2042_e4dd_58b5_2360_ed05_1fc6_5da4);
        format!("{spread:032x}{id:08x}")
    }

    /// Adds a person, or returns the account of that name.
    pub fn add_user(&mut self, login: &str) -> &mut Account {
        self.add_account(login, false)
    }

    /// Adds an organisation, or returns the account of that name.
    pub fn add_organization(&mut self, login: &str) -> &mut Account {
        self.add_account(login, true)
    }

    fn add_account(&mut self, login: &str, organization: bool) -> &mut Account {
        let id = self.fresh_id();
        self.accounts.entry(login.to_owned()).or_insert_with(|| Account {
            id,
            login: login.to_owned(),
            name: format!("{login} (display name)"),
            organization,
            members: BTreeSet::new(),
        })
    }

    /// An account by login, letter case aside.
    pub fn account(&self, login: &str) -> Option<&Account> {
        self.accounts
            .get(login)
            .or_else(|| self.accounts.values().find(|account| account.login.eq_ignore_ascii_case(login)))
    }

    /// Adds a public repository `owner/name` with one commit on `main`; the owner is added as a person if need be.
    pub fn add_repository(&mut self, full_name: &str) -> &mut Repository {
        let (owner, name) = full_name.split_once('/').expect("a repository is named owner/name");
        self.add_user(owner);
        let id = self.fresh_id();
        self.repositories.insert(id, Repository::new(id, owner, name));
        self.push(full_name, "main", "Initial commit");
        self.repository_mut(full_name)
    }

    /// A repository by its present name.
    pub fn repository(&self, full_name: &str) -> &Repository {
        self.find_repository(full_name).unwrap_or_else(|| panic!("the world has no repository {full_name}"))
    }

    /// A repository by its present name.
    pub fn repository_mut(&mut self, full_name: &str) -> &mut Repository {
        let id = self.repository(full_name).id;
        self.repositories.get_mut(&id).expect("it was just found")
    }

    /// A repository by its present name, letter case aside.
    pub fn find_repository(&self, full_name: &str) -> Option<&Repository> {
        self.repositories.values().find(|repository| repository.full_name().eq_ignore_ascii_case(full_name))
    }

    /// The repository that had this name once, when no other has it now.
    pub(crate) fn find_former(&self, full_name: &str) -> Option<&Repository> {
        self.repositories.values().find(|repository| repository.former_names.iter().any(|name| name == full_name))
    }

    /// Adds a commit on top of a branch (or a first one) and returns its hash.
    pub fn push(&mut self, full_name: &str, branch: &str, message: &str) -> String {
        let commit = Commit {
            sha: self.fresh_hash(),
            tree: self.fresh_hash(),
            message: message.to_owned(),
            author: self.repository(full_name).owner.clone(),
            parents: self.repository(full_name).branches.get(branch).cloned().into_iter().collect(),
            time: self.now(),
        };
        let sha = commit.sha.clone();
        self.repository_mut(full_name).set_branch(branch, commit);
        sha
    }

    /// Opens a pull request from a branch of `head_repository` (the repository itself or a fork, which are added with a
    /// fresh commit where they do not exist) against the default branch. Returns its number.
    pub fn open_pull_request(
        &mut self,
        full_name: &str,
        head_repository: &str,
        head_branch: &str,
        author: &str,
    ) -> u64 {
        self.add_user(author);
        if self.find_repository(head_repository).is_none() {
            self.add_repository(head_repository).fork = true;
        }
        let known = self.repository(head_repository).branches.get(head_branch).cloned();
        let head_commit = known.unwrap_or_else(|| self.push(head_repository, head_branch, "A change"));
        let id = self.fresh_id();
        let created_at = self.now();
        // The base repository has it as well, under refs/pull/NUMBER/head.
        let fetched = self.repository(head_repository).commits[&head_commit].clone();
        let head_repository = Some(self.repository(head_repository).id);
        let base_branch = self.repository(full_name).default_branch.clone();
        let base_commit =
            self.repository(full_name).branches.get(&base_branch).cloned().expect("the default branch exists");
        let repository = self.repository_mut(full_name);
        repository.commits.insert(head_commit.clone(), fetched);
        let number = repository.pull_requests.keys().last().map_or(1, |last| last + 1);
        let pull_request = PullRequest {
            id,
            number,
            title: format!("Pull request {number}"),
            body: "What it is good for.".to_owned(),
            author: author.to_owned(),
            open: true,
            merged: false,
            draft: false,
            labels: Vec::new(),
            head_branch: head_branch.to_owned(),
            head_commit,
            head_repository,
            base_branch,
            base_commit,
            created_at,
        };
        repository.pull_requests.insert(number, pull_request);
        number
    }

    /// Pushes to the branch of a pull request and returns the new head.
    pub fn push_to_pull_request(&mut self, full_name: &str, number: u64, message: &str) -> String {
        let pull_request = self.repository(full_name).pull_requests[&number].clone();
        let head =
            pull_request.head_repository.and_then(|id| self.repositories.get(&id)).expect("the head is still there");
        let head = head.full_name();
        let sha = self.push(&head, &pull_request.head_branch, message);
        let fetched = self.repository(&head).commits[&sha].clone();
        self.repository_mut(full_name).commits.insert(sha.clone(), fetched);
        self.repository_mut(full_name).pull_request_mut(number).head_commit.clone_from(&sha);
        sha
    }

    /// Adds a comment and returns its id.
    pub fn add_comment(&mut self, full_name: &str, number: u64, author: &str, body: &str) -> u64 {
        self.add_user(author);
        let id = self.fresh_id();
        let comment = Comment { id, number, author: author.to_owned(), body: body.to_owned(), created_at: self.now() };
        self.repository_mut(full_name).comments.push(comment);
        id
    }

    /// GitHub: adds a check run that waits, as if the app had made it, and returns its id.
    pub fn add_check_run(&mut self, full_name: &str, sha: &str, name: &str) -> u64 {
        let id = self.fresh_id();
        let started_at = crate::json::timestamp(self.now()).as_str().map(str::to_owned);
        let run = CheckRun { id, head_sha: sha.to_owned(), name: name.to_owned(), started_at, ..CheckRun::default() };
        self.repository_mut(full_name).check_runs.push(run);
        id
    }

    /// Renames or moves a repository; the former name redirects until something else takes it.
    pub fn rename(&mut self, full_name: &str, new_full_name: &str) {
        let (owner, name) = new_full_name.split_once('/').expect("a repository is named owner/name");
        self.add_user(owner);
        let repository = self.repository_mut(full_name);
        repository.former_names.push(full_name.to_owned());
        owner.clone_into(&mut repository.owner);
        name.clone_into(&mut repository.name);
    }

    /// GitHub: installs the app. `repositories`: full names; none: all of the account. Returns the installation's id.
    pub fn install(&mut self, account: &str, repositories: Option<&[&str]>) -> u64 {
        self.add_user(account);
        let repositories = repositories.map(|names| names.iter().map(|name| self.repository(name).id).collect());
        let granted = [
            ("metadata", "read"),
            ("contents", "read"),
            ("checks", "write"),
            ("statuses", "write"),
            ("pull_requests", "write"),
            ("issues", "read"),
            ("merge_queues", "read"),
            ("members", "read"),
        ];
        let permissions = granted.map(|(name, level)| (name.to_owned(), level.to_owned())).into();
        let id = self.fresh_id();
        let installation =
            Installation { id, account: account.to_owned(), repositories, suspended: false, permissions };
        self.installations.insert(id, installation);
        id
    }

    /// GitHub: removes the app from an account, and with it all of its tokens.
    pub fn uninstall(&mut self, id: u64) {
        self.installations.remove(&id);
        self.tokens
            .retain(|_, token| !matches!(token, Token::Installation { installation, .. } if *installation == id));
    }

    /// GitHub: the installation that sees a repository.
    pub fn installation_of(&self, repository: u64) -> Option<&Installation> {
        self.installations.values().find(|installation| self.sees(installation, repository))
    }

    /// Whether an installation may see a repository.
    pub(crate) fn sees(&self, installation: &Installation, repository: u64) -> bool {
        self.repositories.get(&repository).is_some_and(|known| {
            known.owner == installation.account
                && installation.repositories.as_ref().is_none_or(|chosen| chosen.contains(&repository))
        })
    }

    /// What a person may do with a repository.
    pub fn permission(&self, repository: &Repository, login: &str) -> Permission {
        let granted = repository.collaborators.get(login).copied();
        let owner = repository.owner == login;
        let member = self.accounts.get(&repository.owner).is_some_and(|owner| owner.members.contains(login));
        match granted {
            _ if owner => Permission::Admin,
            Some(permission) => permission,
            None if member || !repository.private => Permission::Read,
            None => Permission::None,
        }
    }

    /// A token for a person (Gitea: made in the settings) that never expires.
    pub fn add_token(&mut self, login: &str) -> String {
        self.add_user(login);
        let token = self.fresh_hash();
        self.tokens.insert(token.clone(), Token::User { login: login.to_owned(), expires_at: None });
        token
    }
}
