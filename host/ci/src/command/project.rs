//! `project …`, `deliveries` and `dead-letters`: what is built of which repository, what forges told, and what they could not
//! be told.

use harmonia_core::api::{
    AddProject, Changed, DeliveryInfo, ProjectAdded, ProjectChanges, ProjectSettings, RepositoryInfo,
};
use harmonia_core::status::DeadLetter;
use harmonia_core::{Clock as _, SystemClock};
use serde::Serialize;

use crate::cli::{
    DeadLettersArgs, DeliveriesArgs, ProjectAddArgs, ProjectCommand, ProjectEnableArgs, ProjectSetArgs, Reading,
    RepositoriesArgs,
};
use crate::client::Client;
use crate::exit::Failure;
use crate::table::{Table, ago, clean};

/// Rows asked for at once.
const PAGE: usize = 200;

pub(crate) async fn run(command: &ProjectCommand) -> Result<(), Failure> {
    match command {
        ProjectCommand::Add(args) => add(args).await,
        ProjectCommand::Enable(args) => enable(args).await,
        ProjectCommand::Disable(args) => {
            let changes = ProjectChanges { enabled: Some(false), ..ProjectChanges::default() };
            set(&args.output, &args.name, &changes).await
        }
        ProjectCommand::Set(args) => set(&args.output, &args.name, &parse(args)?).await,
        ProjectCommand::List(args) => list(args).await,
        ProjectCommand::Repositories(args) => repositories(args).await,
    }
}

async fn add(args: &ProjectAddArgs) -> Result<(), Failure> {
    let request = AddProject::Git {
        url: args.git.clone(),
        name: args.name.clone(),
        branch: args.branch.clone(),
        poll_interval_s: args.poll,
    };
    added(&args.output, &request).await
}

async fn enable(args: &ProjectEnableArgs) -> Result<(), Failure> {
    let (forge, repository) = args.repository.split_once(':').ok_or_else(|| {
        Failure::usage(format!("'{}' is not FORGE:OWNER/NAME", args.repository))
            .hint("`harmonia-ci project repositories` lists what can be enabled")
    })?;
    let request = AddProject::Repository { forge: forge.to_owned(), repository: repository.to_owned() };
    added(&args.output, &request).await
}

async fn added(output: &Reading, request: &AddProject) -> Result<(), Failure> {
    let client = Client::find(&output.server)?;
    let added: ProjectAdded = client.post("/api/v1/projects", request).await?;
    if output.json {
        return print_json(&added);
    }
    outln!("{} is enabled: {}", added.name, client.url(&added.page));
    Ok(())
}

async fn set(output: &Reading, name: &str, changes: &ProjectChanges) -> Result<(), Failure> {
    let client = Client::find(&output.server)?;
    let request = client.request(reqwest::Method::PATCH, &format!("/api/v1/projects/{name}")).json(changes);
    let settings: ProjectSettings = Client::json(client.send(request).await?).await?;
    if output.json {
        return print_json(&settings);
    }
    out!("{}", settings_table(&[settings]));
    Ok(())
}

/// `key=value` words as settings: the server's own names, so that its check is the only one.
fn parse(args: &ProjectSetArgs) -> Result<ProjectChanges, Failure> {
    let mut fields = serde_json::Map::new();
    for word in &args.settings {
        let Some((key, value)) = word.split_once('=') else {
            return Err(Failure::usage(format!("'{word}' is not KEY=VALUE")));
        };
        let value = match key {
            "branch_patterns" => value.split(',').filter(|pattern| !pattern.is_empty()).collect(),
            "default_branch" | "pr_trust" => serde_json::Value::from(value),
            // true, false, numbers.
            _ => serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::from(value)),
        };
        fields.insert(key.to_owned(), value);
    }
    serde_json::from_value(fields.into()).map_err(|error| {
        Failure::usage(format!("these are no settings: {error}")).hint("`project set --help` names them")
    })
}

async fn list(args: &Reading) -> Result<(), Failure> {
    let client = Client::find(&args.server)?;
    let mut all: Vec<ProjectSettings> = Vec::new();
    loop {
        let after = all.last().map(|last| last.name.clone());
        let path = path("/api/v1/project-settings", &[("after", after.as_deref())]);
        let page: Vec<ProjectSettings> = client.get(&path).await?;
        let is_last = page.len() < PAGE;
        all.extend(page);
        if is_last {
            break;
        }
    }
    if args.json {
        return print_json(&all);
    }
    out!("{}", settings_table(&all));
    Ok(())
}

async fn repositories(args: &RepositoriesArgs) -> Result<(), Failure> {
    let client = Client::find(&args.output.server)?;
    let mut all: Vec<RepositoryInfo> = Vec::new();
    loop {
        let after = all.last().map(|last| format!("{}:{}", last.forge, last.full_name));
        let query = [("search", args.search.as_deref()), ("forge", args.forge.as_deref()), ("after", after.as_deref())];
        let page: Vec<RepositoryInfo> = client.get(&path("/api/v1/repositories", &query)).await?;
        let is_last = page.len() < PAGE;
        all.extend(page);
        if is_last {
            break;
        }
    }
    if args.output.json {
        return print_json(&all);
    }
    let mut table = Table::new(&["REPOSITORY", "VISIBLE", "DEFAULT BRANCH", "PROJECT"]);
    for repository in all {
        table.row([
            format!("{}:{}", repository.forge, repository.full_name),
            if repository.is_private { "private" } else { "public" }.to_owned(),
            repository.default_branch,
            match repository.project {
                Some(name) if repository.enabled => name,
                Some(name) => format!("{name} (disabled)"),
                None => String::new(),
            },
        ]);
    }
    out!("{table}");
    Ok(())
}

/// `deliveries`.
pub(crate) async fn deliveries(args: &DeliveriesArgs) -> Result<(), Failure> {
    let replay = args.replay.map(|id| replay_path(args, id)).transpose()?;
    let client = Client::find(&args.output.server)?;
    if let Some(address) = replay {
        let changed: Changed = client.post(&address, &serde_json::json!({})).await?;
        if args.output.json {
            return print_json(&changed);
        }
        match args.replay.flatten() {
            Some(id) => outln!("delivery {id} is queued again"),
            None => outln!("{} deliveries are queued again", changed.changed),
        }
        return Ok(());
    }
    let dead = args.dead.then_some("true");
    let query = [("dead", dead), ("forge", args.forge.as_deref())];
    let deliveries: Vec<DeliveryInfo> = client.get(&path("/api/v1/deliveries", &query)).await?;
    if args.output.json {
        return print_json(&deliveries);
    }
    let now = SystemClock.now();
    let mut table = Table::new(&["ID", "FORGE", "EVENTS", "REPOSITORIES", "STATE", "AGE", "WHAT CAME OF IT"]);
    for delivery in deliveries {
        table.row([
            delivery.id.to_string(),
            delivery.forge,
            delivery.events.join(","),
            delivery.repositories.join(","),
            delivery.state,
            ago(now, delivery.received_at),
            delivery.error.or(delivery.outcome).unwrap_or_default(),
        ]);
    }
    out!("{table}");
    Ok(())
}

/// Where a replay is asked for: of one delivery, or of all dead letters.
fn replay_path(args: &DeliveriesArgs, id: Option<i64>) -> Result<String, Failure> {
    match id {
        None if args.dead => Ok(path("/api/v1/deliveries/replay", &[("forge", args.forge.as_deref())])),
        None => Err(Failure::usage("--replay needs the delivery's ID, or --dead for all that were given up")),
        Some(id) if args.dead || args.forge.is_some() => {
            Err(Failure::usage(format!("--replay {id} names one delivery: leave out --dead and --forge")))
        }
        Some(id) => Ok(format!("/api/v1/deliveries/{id}/replay")),
    }
}

/// `dead-letters`.
pub(crate) async fn dead_letters(args: &DeadLettersArgs) -> Result<(), Failure> {
    let client = Client::find(&args.output.server)?;
    if let Some(letter) = args.replay {
        let name = format!("{}/{}", letter.kind.as_str(), letter.id);
        let changed: Changed =
            client.post(&format!("/api/v1/dead-letters/{name}/replay"), &serde_json::json!({})).await?;
        if args.output.json {
            return print_json(&changed);
        }
        outln!("{name} is tried again");
        return Ok(());
    }
    let letters: Vec<DeadLetter> = client.get(&path("/api/v1/dead-letters", &[])).await?;
    if args.output.json {
        return print_json(&letters);
    }
    let now = SystemClock.now();
    let mut table = Table::new(&["ID", "TO", "WHAT", "TRIES", "STATE", "LAST ERROR"]);
    for letter in letters {
        table.row([
            format!("{}/{}", letter.kind.as_str(), letter.id),
            letter.target,
            letter.subject,
            letter.attempts.to_string(),
            letter.dead_at.map_or_else(|| "still tried".to_owned(), |at| format!("given up {}", ago(now, at))),
            letter.error.unwrap_or_default(),
        ]);
    }
    out!("{table}");
    Ok(())
}

fn settings_table(projects: &[ProjectSettings]) -> Table {
    let mut table =
        Table::new(&["PROJECT", "KIND", "SOURCE", "STATE", "PULL REQUESTS", "BRANCHES", "POLLED", "SHARES"]);
    for project in projects {
        let source = match (&project.forge, &project.repository, &project.url) {
            (Some(forge), Some(repository), _) => format!("{forge}:{repository}"),
            (_, _, Some(url)) => url.clone(),
            _ => String::new(),
        };
        let hook_error = project.hook.as_ref().and_then(|hook| hook.error.as_ref());
        let state = match (project.enabled, project.repository_removed, &project.poll_error, hook_error) {
            (false, ..) => "disabled".to_owned(),
            (_, true, ..) => "its repository is gone".to_owned(),
            (_, _, Some(error), _) | (_, _, None, Some(error)) => format!("trouble: {error}"),
            _ => "enabled".to_owned(),
        };
        let branches =
            project.default_branch.iter().chain(&project.branch_patterns).chain(&project.tree_branch_patterns);
        table.row([
            project.name.clone(),
            project.kind.clone(),
            source,
            state,
            if project.pr_enabled { project.pr_trust.as_str() } else { "no" }.to_owned(),
            branches.map(|branch| clean(branch)).collect::<Vec<_>>().join(" "),
            match project.poll_interval_s {
                0 => "no".to_owned(),
                seconds => format!("every {seconds} s"),
            },
            project.scheduling_shares.to_string(),
        ]);
    }
    table
}

/// A path with those parameters that are there, and the size of a page.
fn path(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &PAGE.to_string());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    format!("{path}?{}", query.finish())
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::failed(error.to_string()))?;
    outln!("{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use harmonia_core::forge::PullRequestTrust;

    use super::*;
    use crate::cli::{Cli, Command};

    fn settings(words: &[&str]) -> Result<ProjectChanges, Failure> {
        let line = ["harmonia-ci", "project", "set", "p"].iter().chain(words);
        let Command::Project(ProjectCommand::Set(args)) = Cli::try_parse_from(line).expect("a command").command else {
            panic!("project set")
        };
        parse(&args)
    }

    #[test]
    fn settings_are_words() {
        let words = ["enabled=false", "pr_trust=all", "poll_interval_s=60", "branch_patterns=a/*,b", "default_branch="];
        let expected = ProjectChanges {
            enabled: Some(false),
            pr_trust: Some(PullRequestTrust::All),
            poll_interval_s: Some(60),
            branch_patterns: Some(vec!["a/*".to_owned(), "b".to_owned()]),
            default_branch: Some(String::new()),
            ..ProjectChanges::default()
        };
        assert_eq!(settings(&words).expect("understood"), expected);
        assert_eq!(settings(&["default_branch=7"]).expect("a name").default_branch.as_deref(), Some("7"));
        for bad in ["enabled", "enabled=maybe", "colour=red", "poll_interval_s=-1", "pr_trust=some"] {
            assert!(settings(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_replay_is_of_one_delivery_or_of_all_dead_letters() {
        let of = |words: &str| {
            let line = ["harmonia-ci", "deliveries"].into_iter().chain(words.split(' '));
            let Command::Deliveries(args) = Cli::try_parse_from(line).expect("a command").command else {
                panic!("deliveries")
            };
            args.replay.map(|id| replay_path(&args, id)).transpose().map_err(|failure| failure.message().to_owned())
        };
        let dead = |query: &str| Ok(Some(["/api/v1/deliveries/replay?limit=200", query].concat()));
        assert_eq!(of("--replay 7"), Ok(Some("/api/v1/deliveries/7/replay".to_owned())));
        assert_eq!(of("--replay --dead"), dead(""));
        assert_eq!(of("--dead --replay --forge hub"), dead("&forge=hub"));
        assert_eq!(of("--dead"), Ok(None));
        for (words, says) in
            [("--replay", "or --dead"), ("--replay 7 --dead", "leave out"), ("--replay 7 --forge f", "leave out")]
        {
            assert!(of(words).expect_err(words).contains(says), "{words}");
        }
    }

    #[test]
    fn parameters_are_escaped() {
        assert_eq!(path("/p", &[("a", Some("x&y=z")), ("b", None)]), "/p?limit=200&a=x%26y%3Dz");
    }
}
