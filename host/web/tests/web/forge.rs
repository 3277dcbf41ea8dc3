//! A forge in memory that verifies deliveries and hands out credentials. Everything else it is asked is a failure: no route
//! may call out.

use std::sync::{Arc, Mutex};

use harmonia_core::SecretText;
use harmonia_core::forge::{
    BranchHead, CloneCredential, CommitStatus, Delivery, ForgeError, ForgeFeature, ForgeRepository, ForgeUser,
    LoginCompletion, LoginStart, Page, Permission, PullRequest, RepositoryRef, WebhookRequest,
};
use harmonia_core::plugin::PluginStatus;
use harmonia_core::ports::{Forge, Plugins, PortFuture, Reporter};

/// Its name.
pub(crate) const FORGE: &str = "forge";
/// The header and value that count as a good signature.
pub(crate) const SIGNATURE: (&str, &str) = ("X-Signature", "good");
/// The password that it hands out.
pub(crate) const PASSWORD: &str = "correct horse";

/// Also the list of plugins: `forge` works, `broken` traps, `mute` takes no webhooks.
#[derive(Clone, Default)]
pub(crate) struct ScriptedForge {
    /// Answers of `clone_credential` other than the usual one.
    pub(crate) credential_error: Arc<Mutex<Option<ForgeError>>>,
    /// Largest number of headers and longest header that a webhook came with.
    pub(crate) headers_seen: Arc<Mutex<Vec<(String, String)>>>,
    /// How the plugins are.
    pub(crate) statuses: Arc<Mutex<Vec<PluginStatus>>>,
    /// Why the configuration was not taken.
    pub(crate) refused_configuration: Arc<Mutex<Option<String>>>,
    broken: bool,
    mute: bool,
}

type Answer<'a, T> = PortFuture<'a, Result<T, ForgeError>>;

impl Forge for ScriptedForge {
    fn has(&self, feature: ForgeFeature) -> bool {
        !self.mute || feature != ForgeFeature::Webhooks
    }
    fn webhook(&self, request: WebhookRequest) -> Answer<'_, Delivery> {
        let header =
            |name: &str| request.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str());
        let answer = if self.broken {
            Err(ForgeError::Plugin("wasm trap: unreachable, with the secret 42".to_owned()))
        } else if header("x-signature") != Some(SIGNATURE.1) {
            Err(ForgeError::Denied("signature".to_owned()))
        } else {
            serde_json::from_slice(&request.body).map_err(|_| ForgeError::Invalid("no delivery".to_owned()))
        };
        *self.headers_seen.lock().expect("lock") = request.headers;
        Box::pin(async move { answer })
    }
    fn clone_credential(&self, repository: RepositoryRef) -> Answer<'_, Option<CloneCredential>> {
        let error = self.credential_error.lock().expect("lock").take();
        Box::pin(async move {
            match error {
                Some(error) => Err(error),
                None => Ok(Some(CloneCredential {
                    user: format!("user of {}", repository.full_name),
                    password: SecretText::new(PASSWORD.to_owned()),
                    hosts: vec!["forge.example".to_owned()],
                })),
            }
        })
    }
    fn report(&self, _: CommitStatus) -> Answer<'_, ()> {
        panic!("a route called the forge")
    }
    fn comment(&self, _: RepositoryRef, _: u64, _: String, _: String) -> Answer<'_, ()> {
        panic!("a route called the forge")
    }
    fn repositories(&self, _: Option<String>) -> Answer<'_, Page<ForgeRepository>> {
        panic!("a route called the forge")
    }
    fn branch_head(&self, _: RepositoryRef, _: String) -> Answer<'_, BranchHead> {
        panic!("a route called the forge")
    }
    fn tree_hash(&self, _: RepositoryRef, _: String) -> Answer<'_, String> {
        panic!("a route called the forge")
    }
    fn pull_request(&self, _: RepositoryRef, _: u64) -> Answer<'_, PullRequest> {
        panic!("a route called the forge")
    }
    fn open_pull_requests(&self, _: RepositoryRef, _: Option<String>) -> Answer<'_, Page<PullRequest>> {
        panic!("a route called the forge")
    }
    fn permission(&self, _: RepositoryRef, _: String) -> Answer<'_, Permission> {
        panic!("a route called the forge")
    }
    fn install_hook(&self, _: RepositoryRef, _: String) -> Answer<'_, ()> {
        panic!("a route called the forge")
    }
    fn remove_hook(&self, _: RepositoryRef, _: String) -> Answer<'_, ()> {
        panic!("a route called the forge")
    }
    fn login_url(&self, _: LoginStart) -> Answer<'_, String> {
        panic!("a route called the forge")
    }
    fn login_complete(&self, _: LoginCompletion) -> Answer<'_, ForgeUser> {
        panic!("a route called the forge")
    }
}

impl Plugins for ScriptedForge {
    fn forges(&self) -> Vec<String> {
        vec![FORGE.to_owned(), "broken".to_owned(), "mute".to_owned()]
    }
    fn forge(&self, name: &str) -> Option<Arc<dyn Forge>> {
        match name {
            FORGE => Some(Arc::new(self.clone())),
            "broken" => Some(Arc::new(Self { broken: true, ..self.clone() })),
            "mute" => Some(Arc::new(Self { mute: true, ..self.clone() })),
            _ => None,
        }
    }
    fn reporters(&self) -> Vec<String> {
        vec![]
    }
    fn reporter(&self, _: &str) -> Option<Arc<dyn Reporter>> {
        None
    }
    fn statuses(&self) -> Vec<PluginStatus> {
        self.statuses.lock().expect("lock").clone()
    }
    fn refused_configuration(&self) -> Option<String> {
        self.refused_configuration.lock().expect("lock").clone()
    }
}

/// A public repository.
pub(crate) fn repository(id: &str, full_name: &str) -> ForgeRepository {
    let (owner, name) = full_name.rsplit_once('/').expect("owner/name");
    ForgeRepository {
        id: id.to_owned(),
        owner: owner.to_owned(),
        name: name.to_owned(),
        full_name: full_name.to_owned(),
        clone_url: format!("https://forge.example/{full_name}.git"),
        html_url: format!("https://forge.example/{full_name}"),
        default_branch: "main".to_owned(),
        is_private: false,
        is_archived: false,
        topics: vec![],
    }
}
