//! Why a job does not run: facts from the tables, sentences from facts. Start at [`sentences`], which is pure.

use std::collections::HashMap;
use std::time::Duration;

use harmonia_core::api::Node;
use harmonia_core::{JobId, Timestamp};
use time::macros::format_description;

use crate::{Db, DbError};

/// A node that was not heard of for this long counts as gone (operations.md).
pub(super) const SILENT_AFTER: Duration = Duration::from_mins(2);
/// Most names in one sentence.
const NAMES_MAX: usize = 5;
/// Further than this nobody counts the jobs ahead.
const AHEAD_MAX: i64 = 1_000;

/// What is known of one waiting job.
#[derive(Debug, Clone, Default)]
struct Facts {
    system: String,
    features: Vec<String>,
    /// When a node that can run it was last heard of, if any ever was.
    last_offered: Option<Timestamp>,
    /// Names and states of unfinished inputs, at most [`NAMES_MAX`].
    blockers: Vec<(String, String)>,
    unmet_deps: usize,
    not_before: Option<Timestamp>,
    /// The last try, when it ended without deciding anything: node, outcome, message.
    last_try: Option<(String, String, Option<String>)>,
    avoid_node: Option<String>,
    /// Ready jobs of its class that come first by priority and age.
    ahead: usize,
    /// It cannot be built before an evaluator walked below it.
    walk: Option<Walk>,
}

/// What is known of a walk that a job waits for: what the job leans on was in an upstream cache, and is gone.
#[derive(Debug, Clone, Default)]
struct Walk {
    /// Who walks now.
    walker: Option<String>,
    /// The evaluator that has the `.drv` files, when the walk is still its own (functions/upstream.sql, `claim_walk`).
    reserved_for: Option<String>,
    tries: usize,
    not_before: Option<Timestamp>,
}

impl Db {
    /// Why each of these jobs waits, one sentence a reason; nothing for jobs that do not wait.
    pub async fn why(&self, jobs: &[JobId], now: Timestamp) -> Result<HashMap<JobId, Vec<String>>, DbError> {
        self.why_of(jobs, None, now).await
    }

    /// The same of jobs of which is known how many ready ones of their class come first.
    pub(super) async fn why_in_places(
        &self,
        ahead: &HashMap<JobId, usize>,
        now: Timestamp,
    ) -> Result<HashMap<JobId, Vec<String>>, DbError> {
        let jobs: Vec<JobId> = ahead.keys().copied().collect();
        self.why_of(&jobs, Some(ahead), now).await
    }

    async fn why_of(
        &self,
        jobs: &[JobId],
        ahead: Option<&HashMap<JobId, usize>>,
        now: Timestamp,
    ) -> Result<HashMap<JobId, Vec<String>>, DbError> {
        let ids: Vec<i64> = jobs.iter().map(|job| job.0).collect();
        let rows = sqlx::query!(
            r#"SELECT j.id, j.unmet_deps, j.not_before, j.avoid_node, c.system, c.features,
                      last_offered(c) AS "last_offered?", last.node AS "node?",
                      last.outcome AS "outcome?", last.message AS "message?",
                      CASE WHEN j.unmet_deps > 0 OR $3 THEN 0 ELSE (
                          -- Boosted ones, and what is older in each project's queue: no more is read than is counted.
                          SELECT count(*) FROM (
                              SELECT FROM build_jobs o
                              WHERE o.status || '' = 'pending' AND o.unmet_deps = 0 AND o.class_id = j.class_id AND o.priority > 0
                                AND (o.priority > j.priority OR (o.priority = j.priority AND o.id < j.id))
                              UNION ALL
                              SELECT FROM ready_queues(ARRAY[j.class_id]) q
                              CROSS JOIN LATERAL (
                                  SELECT FROM build_jobs o
                                  WHERE o.status || '' = 'pending' AND o.unmet_deps = 0 AND o.class_id = j.class_id AND o.priority = 0
                                    AND o.project_id = q.project_id AND o.id < j.id
                                  LIMIT $2
                              ) o
                              WHERE j.priority = 0
                              LIMIT $2
                          ) first
                      ) END AS "ahead!",
                      w.tries AS "walk_tries?", w.not_before AS "walk_not_before?", wc.node AS "walker?", n.id AS "reserved_for?"
               FROM build_jobs j
               JOIN job_classes c ON c.id = j.class_id
               LEFT JOIN job_walks w ON w.job_id = j.id
               LEFT JOIN walk_claims wc ON wc.eval_id = w.eval_id AND wc.lease_until > now()
               LEFT JOIN evaluations e ON e.id = w.eval_id
               LEFT JOIN evaluations evaluated ON evaluated.id = coalesce(e.reuses_eval_id, e.id)
               LEFT JOIN nodes n ON walks_itself(n, evaluated.evaluated_by)
               LEFT JOIN LATERAL (
                   SELECT a.node, a.outcome, a.message FROM build_attempts a WHERE a.job_id = j.id ORDER BY a.id DESC LIMIT 1
               ) last ON true
               WHERE j.id = ANY ($1) AND j.status = 'pending'"#,
            &ids,
            AHEAD_MAX,
            ahead.is_some(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read why jobs wait", error))?;
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let blocked: Vec<i64> = rows.iter().filter(|row| row.unmet_deps > 0).map(|row| row.id).collect();
        let (mut blockers, nodes) = tokio::try_join!(self.blockers(&blocked), self.nodes(SILENT_AFTER))?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let facts = Facts {
                    system: row.system,
                    features: row.features,
                    last_offered: row.last_offered,
                    blockers: blockers.remove(&row.id).unwrap_or_default(),
                    unmet_deps: usize::try_from(row.unmet_deps).unwrap_or(0),
                    not_before: row.not_before,
                    last_try: row.node.zip(row.outcome).map(|(node, outcome)| (node, outcome, row.message)),
                    avoid_node: row.avoid_node,
                    ahead: match ahead {
                        Some(places) => places.get(&JobId(row.id)).copied().unwrap_or(0),
                        None => usize::try_from(row.ahead).unwrap_or(0),
                    },
                    walk: row.walk_tries.map(|tries| Walk {
                        walker: row.walker,
                        reserved_for: row.reserved_for,
                        tries: usize::try_from(tries).unwrap_or(0),
                        not_before: row.walk_not_before,
                    }),
                };
                (JobId(row.id), sentences(&facts, &nodes, now))
            })
            .collect())
    }

    async fn blockers(&self, jobs: &[i64]) -> Result<HashMap<i64, Vec<(String, String)>>, DbError> {
        if jobs.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = sqlx::query!(
            r#"SELECT j.id AS "id!", b.name AS "name!", b.status AS "status!"
               FROM unnest($1::bigint[]) AS wanted (id)
               JOIN build_jobs j ON j.id = wanted.id
               CROSS JOIN LATERAL (
                   SELECT d.name, o.status
                   FROM derivation_inputs i
                   JOIN build_jobs o ON o.drv_path = i.input_drv
                   JOIN derivations d ON d.drv_path = o.drv_path
                   WHERE i.referrer = j.drv_path AND o.status <> 'succeeded'
                   ORDER BY (o.status IN ('building', 'uploading')) DESC, o.id LIMIT $2
               ) b"#,
            jobs,
            NAMES_MAX as i64,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read what jobs wait for", error))?;
        let mut blockers: HashMap<i64, Vec<(String, String)>> = HashMap::new();
        for row in rows {
            blockers.entry(row.id).or_default().push((row.name, row.status));
        }
        Ok(blockers)
    }
}

/// The reasons, the decisive one first.
fn sentences(facts: &Facts, nodes: &[Node], now: Timestamp) -> Vec<String> {
    let mut reasons: Vec<String> = facts.walk.iter().map(|walk| awaits_walk(walk, nodes, now)).collect();
    // A walk counts as one of them.
    let unmet = facts.unmet_deps.saturating_sub(reasons.len());
    if unmet > 0 {
        reasons.push(blocked_by(facts, unmet));
    }
    if !reasons.is_empty() {
        return reasons;
    }
    if let Some(until) = facts.not_before.filter(|until| *until > now) {
        reasons.push(delayed(until, facts.last_try.as_ref()));
    }
    let capable: Vec<&Node> = nodes.iter().filter(|node| is_capable(node, facts)).collect();
    let online: Vec<&Node> = capable.iter().copied().filter(|node| node.online).collect();
    if online.is_empty() {
        reasons.push(nobody(facts, &capable));
        return reasons;
    }
    let free = |node: &&&Node| !node.draining && node.paused.is_none() && node.running < node.max_jobs;
    let has_free = online.iter().any(|node| free(&node));
    if !has_free {
        reasons.extend(online.iter().take(NAMES_MAX).map(|node| occupied(node)));
        if online.len() > NAMES_MAX {
            reasons.push(format!("and {} more nodes are in the same position", online.len() - NAMES_MAX));
        }
    }
    if facts.ahead > 0 {
        let number =
            if facts.ahead >= AHEAD_MAX as usize { "more than 1000".to_owned() } else { facts.ahead.to_string() };
        let jobs = if facts.ahead == 1 { "job that came first is" } else { "jobs that came first are" };
        reasons.push(format!("{number} {jobs} ready for the same nodes"));
    }
    if reasons.is_empty() {
        reasons.push(match &facts.avoid_node {
            Some(node) if online.len() > 1 => {
                format!("ready; not on {node}, where the last try failed, if another node is free")
            }
            _ => "ready: the next node with a free slot takes it".to_owned(),
        });
    }
    reasons
}

fn awaits_walk(walk: &Walk, nodes: &[Node], now: Timestamp) -> String {
    let waits = if let Some(walker) = &walk.walker {
        format!("{walker} looks what has to be built instead")
    } else if let Some(until) = walk.not_before.filter(|until| *until > now) {
        let times = if walk.tries == 1 { "once".to_owned() } else { format!("{} times", walk.tries) };
        format!("what has to be built instead could not be found out {times}, tried again at {}", time_of_day(until))
    } else {
        let online = |id: Option<&str>| {
            nodes.iter().any(|node| {
                node.online
                    && !node.draining
                    && node.capabilities.iter().any(|capability| capability == "evaluator")
                    && id.is_none_or(|id| node.id == id)
            })
        };
        match &walk.reserved_for {
            Some(id) if online(Some(id)) => format!("{id} is about to look what has to be built instead"),
            Some(id) => format!(
                "{id}, which evaluated it, has to look what must be built instead and is away; an hour after it was last \
                 heard of, another evaluator does"
            ),
            None if online(None) => "an evaluator is about to look what has to be built instead".to_owned(),
            None => "an evaluator has to look what must be built instead, and none is online".to_owned(),
        }
    };
    format!("what it needs is gone from the cache that had it: {waits}")
}

fn blocked_by(facts: &Facts, number: usize) -> String {
    let names: Vec<String> = facts.blockers.iter().map(|(name, status)| format!("{name} ({status})")).collect();
    let more = number.saturating_sub(names.len());
    let things = if number == 1 { "dependency" } else { "dependencies" };
    match (names.is_empty(), more) {
        (true, _) => format!("blocked by {number} unfinished {things}"),
        (false, 0) => format!("blocked by {number} unfinished {things}: {}", names.join(", ")),
        (false, more) => format!("blocked by {number} unfinished {things}: {} and {more} more", names.join(", ")),
    }
}

fn time_of_day(at: Timestamp) -> String {
    let format = format_description!("[hour]:[minute]:[second] UTC");
    at.format(&format).unwrap_or_else(|_| at.to_string())
}

fn delayed(until: Timestamp, last_try: Option<&(String, String, Option<String>)>) -> String {
    let time = time_of_day(until);
    match last_try {
        Some((node, outcome, message)) => {
            let what = if outcome == "lost" { "lost its node" } else { "failed transiently" };
            let first_line = message.as_deref().and_then(|text| text.lines().next()).unwrap_or_default();
            let because = if first_line.is_empty() { String::new() } else { format!(": {first_line}") };
            format!("delayed until {time}: the last try on {node} {what}{because}")
        }
        None => format!("delayed until {time}"),
    }
}

fn moment(at: Timestamp) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    at.format(&format).unwrap_or_else(|_| at.to_string())
}

fn is_capable(node: &Node, facts: &Facts) -> bool {
    node.capabilities.iter().any(|capability| capability == "builder")
        && (facts.system == "builtin" || node.systems.contains(&facts.system))
        && facts.features.iter().all(|feature| node.features.contains(feature))
}

fn nobody(facts: &Facts, capable: &[&Node]) -> String {
    let with = if facts.features.is_empty() { String::new() } else { format!(" with {}", facts.features.join(", ")) };
    let what = format!("{}{with}", facts.system);
    if capable.is_empty() {
        return match facts.last_offered {
            Some(at) => format!("no node offers {what} now; one did until {}", moment(at)),
            None => format!("no node offers {what}"),
        };
    }
    let names: Vec<&str> = capable.iter().take(NAMES_MAX).map(|node| node.id.as_str()).collect();
    format!("no node that offers {what} is online (known: {})", names.join(", "))
}

fn occupied(node: &Node) -> String {
    let id = &node.id;
    if node.draining {
        return format!("{id} is draining and takes no new work");
    }
    match &node.paused {
        Some(reason) => format!("{id} has paused: {reason}"),
        None => format!("{id} is full ({} of {} slots)", node.running, node.max_jobs),
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: Timestamp = datetime!(2026-01-02 03:04:05 UTC);

    fn node(id: &str) -> Node {
        Node {
            id: id.to_owned(),
            capabilities: vec!["builder".to_owned()],
            systems: vec!["x86_64-linux".to_owned()],
            features: vec!["kvm".to_owned()],
            max_jobs: 2,
            running: 0,
            draining: false,
            online: true,
            version: "0".to_owned(),
            paused: None,
            policy_error: None,
            last_seen: NOW,
        }
    }

    fn facts() -> Facts {
        Facts { system: "x86_64-linux".to_owned(), ..Facts::default() }
    }

    fn why(facts: &Facts, nodes: &[Node]) -> String {
        sentences(facts, nodes, NOW).join("; ")
    }

    #[test]
    fn blocked() {
        let mut blocked = Facts { unmet_deps: 1, ..facts() };
        assert_eq!(why(&blocked, &[]), "blocked by 1 unfinished dependency");
        blocked.blockers = vec![("a".into(), "building".into()), ("b".into(), "pending".into())];
        blocked.unmet_deps = 2;
        assert_eq!(why(&blocked, &[]), "blocked by 2 unfinished dependencies: a (building), b (pending)");
        blocked.unmet_deps = 9;
        assert_eq!(why(&blocked, &[]), "blocked by 9 unfinished dependencies: a (building), b (pending) and 7 more");
    }

    #[test]
    fn somebody_has_to_look_below_it_first() {
        let evaluator = Node { capabilities: vec!["evaluator".into()], ..node("e") };
        let away = Node { online: false, ..evaluator.clone() };
        let cases: [(Walk, &Node, &str); 6] = [
            (Walk::default(), &away, "an evaluator has to look what must be built instead, and none is online"),
            (Walk::default(), &evaluator, "an evaluator is about to look what has to be built instead"),
            (
                Walk { reserved_for: Some("e".into()), ..Walk::default() },
                &evaluator,
                "e is about to look what has to be built instead",
            ),
            (
                Walk { reserved_for: Some("e".into()), ..Walk::default() },
                &away,
                "e, which evaluated it, has to look what must be built instead and is away; an hour after it was last \
                 heard of, another evaluator does",
            ),
            (
                Walk { walker: Some("e".into()), reserved_for: Some("e".into()), ..Walk::default() },
                &evaluator,
                "e looks what has to be built instead",
            ),
            (
                Walk { tries: 2, not_before: Some(datetime!(2026-01-02 03:05:00 UTC)), ..Walk::default() },
                &evaluator,
                "what has to be built instead could not be found out 2 times, tried again at 03:05:00 UTC",
            ),
        ];
        for (walk, node, expected) in cases {
            let job = Facts { unmet_deps: 1, walk: Some(walk), ..facts() };
            assert_eq!(
                why(&job, std::slice::from_ref(node)),
                format!("what it needs is gone from the cache that had it: {expected}")
            );
        }
        let both = Facts { unmet_deps: 2, walk: Some(Walk::default()), ..facts() };
        assert!(why(&both, &[evaluator]).ends_with("; blocked by 1 unfinished dependency"));
    }

    #[test]
    fn nobody_can() {
        let mut job = facts();
        assert_eq!(why(&job, &[]), "no node offers x86_64-linux");
        job.features = vec!["big".into()];
        assert_eq!(why(&job, &[node("a")]), "no node offers x86_64-linux with big");
        job.features = vec!["kvm".into()];
        let offline = Node { online: false, ..node("a") };
        assert_eq!(why(&job, &[offline]), "no node that offers x86_64-linux with kvm is online (known: a)");
        let evaluator = Node { capabilities: vec!["evaluator".into()], ..node("e") };
        assert_eq!(why(&facts(), &[evaluator]), "no node offers x86_64-linux");
        let left = Facts { last_offered: Some(datetime!(2026-01-01 20:00:01 UTC)), ..facts() };
        assert_eq!(why(&left, &[]), "no node offers x86_64-linux now; one did until 2026-01-01 20:00 UTC");
        let anywhere = Facts { system: "builtin".into(), ..Facts::default() };
        assert_eq!(why(&anywhere, &[node("a")]), "ready: the next node with a free slot takes it");
    }

    #[test]
    fn all_occupied() {
        let nodes = [
            Node { running: 2, ..node("a") },
            Node { draining: true, ..node("b") },
            Node { paused: Some("disk: 1 GiB free, 5 GiB needed".into()), ..node("c") },
        ];
        assert_eq!(
            why(&facts(), &nodes),
            "a is full (2 of 2 slots); b is draining and takes no new work; c has paused: disk: 1 GiB free, 5 GiB needed"
        );
        let queued = Facts { ahead: 3, ..facts() };
        assert_eq!(
            why(&queued, &nodes[..1]),
            "a is full (2 of 2 slots); 3 jobs that came first are ready for the same nodes"
        );
        assert_eq!(
            why(&Facts { ahead: 1, ..facts() }, &[node("a")]),
            "1 job that came first is ready for the same nodes"
        );
        let many = Facts { ahead: 1_000, ..facts() };
        assert_eq!(why(&many, &[node("a")]), "more than 1000 jobs that came first are ready for the same nodes");
    }

    #[test]
    fn delayed_after_a_transient_failure() {
        let failed = Facts {
            not_before: Some(datetime!(2026-01-02 03:05:00 UTC)),
            last_try: Some(("a".into(), "transient".into(), Some("disk full\nmore".into()))),
            avoid_node: Some("a".into()),
            ..facts()
        };
        assert_eq!(
            why(&failed, &[node("a"), node("b")]),
            "delayed until 03:05:00 UTC: the last try on a failed transiently: disk full"
        );
        let past = Facts { not_before: Some(NOW), ..failed.clone() };
        assert_eq!(
            why(&past, &[node("a"), node("b")]),
            "ready; not on a, where the last try failed, if another node is free"
        );
        let lost = Facts { last_try: Some(("a".into(), "lost".into(), None)), ..failed };
        assert_eq!(why(&lost, &[node("a")]), "delayed until 03:05:00 UTC: the last try on a lost its node");
    }
}
