//! Track 0.1 of `wit/forge`. Each interface is optional: it is looked up when the component is loaded.

mod convert;

use std::sync::Arc;

use harmonia_core::forge::{
    BranchHead, CloneCredential, CommitStatus, Delivery, ForgeError, ForgeFeature, ForgeRepository, ForgeUser,
    LoginCompletion, LoginStart, Page, Permission, PullRequest, RepositoryRef, WebhookRequest,
};
use harmonia_core::ports::{Forge, PortFuture};
use wasmtime::component::InstancePre;

use self::bindings::exports::harmonia::forge as wit;
use self::bindings::harmonia::forge::types;
use crate::call::{Caller, Network};
use crate::error::CallError;
use crate::loader::Contract;
use crate::state::State;

/// What `bindgen!` makes of the track.
mod bindings {
    wasmtime::component::bindgen!({
        path: ["../../wit/plugin/0.1", "../../wit/forge/0.1"],
        world: "harmonia:forge/forge",
        imports: { default: trappable },
        exports: { default: async },
        with: { "harmonia:plugin": crate::imports::v0_1::bindings::harmonia::plugin },
    });
}

/// Loads interfaces that are there: that checks the types of their functions.
macro_rules! check {
    ($self:ident, $store:ident, $instance:ident, $($interface:ident),*) => {
        $(if let Some(interface) = &$self.$interface {
            interface.load(&mut *$store, $instance)?;
        })*
    };
}

/// A forge that speaks track 0.1.
pub(crate) struct Adapter {
    caller: Arc<Caller>,
    webhooks: Option<wit::webhooks::GuestIndices>,
    statuses: Option<wit::statuses::GuestIndices>,
    comments: Option<wit::comments::GuestIndices>,
    discovery: Option<wit::discovery::GuestIndices>,
    branches: Option<wit::branches::GuestIndices>,
    pull_requests: Option<wit::pull_requests::GuestIndices>,
    permissions: Option<wit::permissions::GuestIndices>,
    credentials: Option<wit::credentials::GuestIndices>,
    hooks: Option<wit::hooks::GuestIndices>,
    login: Option<wit::login::GuestIndices>,
}

impl Adapter {
    /// Checks the types of every exported function.
    pub(crate) async fn check_types(&self) -> Result<(), CallError> {
        let check = self.caller.call("forge", Network::Closed, |guest| {
            Box::pin(async move {
                let (store, instance) = (guest.store, guest.instance);
                check!(self, store, instance, webhooks, statuses, comments, discovery, branches);
                check!(self, store, instance, pull_requests, permissions, credentials, hooks, login);
                Ok(())
            })
        });
        check.await
    }

    /// The error says which exported interface lacks which function.
    pub(crate) fn new(caller: Arc<Caller>) -> wasmtime::Result<Self> {
        let found = Found { instances: &caller.instances, contract: &caller.program.contract };
        Ok(Self {
            webhooks: found.look_up("webhooks", wit::webhooks::GuestIndices::new)?,
            statuses: found.look_up("statuses", wit::statuses::GuestIndices::new)?,
            comments: found.look_up("comments", wit::comments::GuestIndices::new)?,
            discovery: found.look_up("discovery", wit::discovery::GuestIndices::new)?,
            branches: found.look_up("branches", wit::branches::GuestIndices::new)?,
            pull_requests: found.look_up("pull-requests", wit::pull_requests::GuestIndices::new)?,
            permissions: found.look_up("permissions", wit::permissions::GuestIndices::new)?,
            credentials: found.look_up("credentials", wit::credentials::GuestIndices::new)?,
            hooks: found.look_up("hooks", wit::hooks::GuestIndices::new)?,
            login: found.look_up("login", wit::login::GuestIndices::new)?,
            caller,
        })
    }
}

/// What a component exports.
struct Found<'a> {
    instances: &'a InstancePre<State>,
    contract: &'a Contract,
}

impl Found<'_> {
    /// Lacking the interface is fine; having half of it is not.
    fn look_up<T>(
        &self,
        interface: &str,
        look_up: impl FnOnce(&InstancePre<State>) -> wasmtime::Result<T>,
    ) -> wasmtime::Result<Option<T>> {
        let exported = self.contract.exports.iter().any(|name| name == interface);
        exported.then(|| look_up(self.instances)).transpose()
    }
}

/// Calls `$method` of the interface `$interface` with references to `$argument`s; the guest's own errors become core's.
macro_rules! call {
    ($self:ident, $interface:ident, $export:literal, $network:expr, $method:ident($($argument:expr),*)) => {
        async move {
            let Some(interface) = &$self.$interface else { return Err(ForgeError::Unsupported($export)) };
            let answer = $self.caller.call($export, $network, move |guest| {
                Box::pin(async move {
                    interface.load(&mut *guest.store, guest.instance)?.$method(guest.store, $($argument),*).await
                })
            });
            $self.noted($export, answer.await?.map_err(ForgeError::from))
        }
    };
}

impl Adapter {
    /// A refusal is for whoever runs this server to mend, and belongs where they look. Not that of a login: the person who
    /// logs in mends it.
    fn noted<T>(&self, export: &str, answer: Result<T, ForgeError>) -> Result<T, ForgeError> {
        if let Err(ForgeError::Denied(text)) = &answer
            && !export.starts_with("login.")
        {
            self.caller.stats.note_refused(export, text);
        }
        answer
    }
}

impl Forge for Adapter {
    fn has(&self, feature: ForgeFeature) -> bool {
        match feature {
            ForgeFeature::Webhooks => self.webhooks.is_some(),
            ForgeFeature::Statuses => self.statuses.is_some(),
            ForgeFeature::Comments => self.comments.is_some(),
            ForgeFeature::Discovery => self.discovery.is_some(),
            ForgeFeature::Branches => self.branches.is_some(),
            ForgeFeature::PullRequests => self.pull_requests.is_some(),
            ForgeFeature::Permissions => self.permissions.is_some(),
            ForgeFeature::Credentials => self.credentials.is_some(),
            ForgeFeature::Hooks => self.hooks.is_some(),
            ForgeFeature::Login => self.login.is_some(),
        }
    }

    fn webhook(&self, request: WebhookRequest) -> PortFuture<'_, Result<Delivery, ForgeError>> {
        let request: wit::webhooks::Request = request.into();
        Box::pin(async move {
            const EXPORT: &str = "webhooks.parse";
            let Some(interface) = &self.webhooks else { return Err(ForgeError::Unsupported(EXPORT)) };
            // The forge waits for the answer: whatever it needs to be asked is asked later.
            let call = self.caller.call(EXPORT, Network::Closed, move |guest| {
                Box::pin(async move {
                    let parse = interface.load(&mut *guest.store, guest.instance)?;
                    let answer = parse.call_parse(&mut *guest.store, &request).await?;
                    Ok((answer, guest.store.data().capabilities.unusable_secret().map(str::to_owned)))
                })
            });
            let (answer, unusable_secret) = call.await?;
            match (answer.map_err(ForgeError::from), unusable_secret) {
                (Ok(delivery), _) => Ok(delivery.into()),
                // No signature can be right then: whoever runs this server has to act, and the forge delivers again.
                (Err(ForgeError::Denied(_)), Some(problem)) => {
                    self.caller.stats.note_problem(&problem);
                    Err(ForgeError::Unavailable(problem))
                }
                (Err(error), _) => Err(error),
            }
        })
    }

    fn report(&self, status: CommitStatus) -> PortFuture<'_, Result<(), ForgeError>> {
        let status: wit::statuses::Status = status.into();
        Box::pin(call!(self, statuses, "statuses.report", Network::Granted, call_report(&status)))
    }

    fn comment(
        &self,
        repository: RepositoryRef,
        number: u64,
        key: String,
        body: String,
    ) -> PortFuture<'_, Result<(), ForgeError>> {
        let repository: types::RepositoryRef = repository.into();
        Box::pin(call!(self, comments, "comments.post", Network::Granted, call_post(&repository, number, &key, &body)))
    }

    fn repositories(&self, cursor: Option<String>) -> PortFuture<'_, Result<Page<ForgeRepository>, ForgeError>> {
        Box::pin(async move {
            let call = call!(
                self,
                discovery,
                "discovery.repositories",
                Network::Granted,
                call_repositories(cursor.as_deref())
            );
            let page = call.await?;
            Ok(Page { items: page.repositories.into_iter().map(Into::into).collect(), next: page.next })
        })
    }

    fn branch_head(&self, repository: RepositoryRef, branch: String) -> PortFuture<'_, Result<BranchHead, ForgeError>> {
        let repository: types::RepositoryRef = repository.into();
        Box::pin(async move {
            let call = call!(self, branches, "branches.head", Network::Granted, call_head(&repository, &branch));
            let head = call.await?;
            Ok(BranchHead { commit: head.commit, author: head.author, message: head.message })
        })
    }

    fn tree_hash(&self, repository: RepositoryRef, commit: String) -> PortFuture<'_, Result<String, ForgeError>> {
        let repository: types::RepositoryRef = repository.into();
        Box::pin(call!(self, branches, "branches.tree-hash", Network::Granted, call_tree_hash(&repository, &commit)))
    }

    fn pull_request(&self, repository: RepositoryRef, number: u64) -> PortFuture<'_, Result<PullRequest, ForgeError>> {
        let repository: types::RepositoryRef = repository.into();
        Box::pin(async move {
            let call = call!(self, pull_requests, "pull-requests.get", Network::Granted, call_get(&repository, number));
            Ok(call.await?.into())
        })
    }

    fn open_pull_requests(
        &self,
        repository: RepositoryRef,
        cursor: Option<String>,
    ) -> PortFuture<'_, Result<Page<PullRequest>, ForgeError>> {
        let repository: types::RepositoryRef = repository.into();
        Box::pin(async move {
            let call = call!(
                self,
                pull_requests,
                "pull-requests.open",
                Network::Granted,
                call_open(&repository, cursor.as_deref())
            );
            let page = call.await?;
            Ok(Page { items: page.pull_requests.into_iter().map(Into::into).collect(), next: page.next })
        })
    }

    fn permission(&self, repository: RepositoryRef, user: String) -> PortFuture<'_, Result<Permission, ForgeError>> {
        let repository: types::RepositoryRef = repository.into();
        Box::pin(async move {
            let call = call!(self, permissions, "permissions.get", Network::Granted, call_get(&repository, &user));
            Ok(call.await?.into())
        })
    }

    fn clone_credential(
        &self,
        repository: RepositoryRef,
    ) -> PortFuture<'_, Result<Option<CloneCredential>, ForgeError>> {
        const EXPORT: &str = "credentials.clone";
        let repository: types::RepositoryRef = repository.into();
        Box::pin(async move {
            let Some(credentials) = &self.credentials else { return Err(ForgeError::Unsupported(EXPORT)) };
            let answer = self.caller.call(EXPORT, Network::Granted, move |guest| {
                Box::pin(async move {
                    let store = guest.store;
                    let credentials = credentials.load(&mut *store, guest.instance)?;
                    let answer = credentials.call_clone(&mut *store, &repository).await?;
                    let credential = match answer {
                        Ok(Some(credential)) => credential,
                        Ok(None) => return Ok(Ok(None)),
                        Err(error) => return Ok(Err(error.into())),
                    };
                    // The handle dies with the store, so its text is taken here; it goes to git and nowhere else.
                    let state = store.data_mut();
                    let secret = state.take(credential.password)?;
                    Ok(convert::credential(&state.capabilities, credential.user, &secret, credential.hosts).map(Some))
                })
            });
            self.noted(EXPORT, answer.await?)
        })
    }

    fn install_hook(&self, repository: RepositoryRef, url: String) -> PortFuture<'_, Result<(), ForgeError>> {
        let repository: types::RepositoryRef = repository.into();
        Box::pin(call!(self, hooks, "hooks.install", Network::Granted, call_install(&repository, &url)))
    }

    fn remove_hook(&self, repository: RepositoryRef, url: String) -> PortFuture<'_, Result<(), ForgeError>> {
        let repository: types::RepositoryRef = repository.into();
        Box::pin(call!(self, hooks, "hooks.remove", Network::Granted, call_remove(&repository, &url)))
    }

    fn login_url(&self, start: LoginStart) -> PortFuture<'_, Result<String, ForgeError>> {
        let start: wit::login::Start = start.into();
        Box::pin(call!(self, login, "login.url", Network::Granted, call_url(&start)))
    }

    fn login_complete(&self, completion: LoginCompletion) -> PortFuture<'_, Result<ForgeUser, ForgeError>> {
        let completion: wit::login::Completion = completion.into();
        Box::pin(async move {
            let call = call!(self, login, "login.complete", Network::Granted, call_complete(&completion));
            let user = call.await?;
            Ok(ForgeUser { id: user.id, login: user.login, name: user.name })
        })
    }
}
