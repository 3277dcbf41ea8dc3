use super::Command::{Run, Unclear};
use super::*;
use crate::forge::Permission::{Admin, None as Nothing, Read, Write};
use crate::forge::PullRequestTrust::{All, Collaborators, None as Nobody};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

const QUESTION: Question = Question {
    pr_enabled: true,
    trust: Collaborators,
    build_drafts: false,
    is_draft: false,
    author_permission: None,
    is_approved: false,
};

#[test]
fn collaborators_run_and_others_wait_for_an_approval() {
    let run = TrustDecision::Run;
    let wait = TrustDecision::Wait(WAITS_FOR_APPROVAL);
    let cases = [
        (Collaborators, Some(Admin), false, run),
        (Collaborators, Some(Write), false, run),
        (Collaborators, Some(Read), false, wait),
        (Collaborators, Some(Nothing), false, wait),
        (Collaborators, None, false, wait),
        (Collaborators, Some(Read), true, run),
        (Collaborators, None, true, run),
        (All, Some(Nothing), false, run),
        (All, None, false, run),
        (Nobody, Some(Admin), false, wait),
        (Nobody, Some(Admin), true, run),
    ];
    for (trust, author_permission, is_approved, expected) in cases {
        let question = Question { trust, author_permission, is_approved, ..QUESTION };
        assert_eq!(decide(&question), expected, "{question:?}");
    }
}

#[test]
fn drafts_wait_until_ready_unless_configured() {
    for (is_draft, build_drafts, waits) in
        [(true, false, true), (true, true, false), (false, false, false), (false, true, false)]
    {
        // Even approved, and of somebody trusted.
        let question = Question { is_draft, build_drafts, trust: All, is_approved: true, ..QUESTION };
        let expected = if waits { TrustDecision::Wait(WAITS_AS_DRAFT) } else { TrustDecision::Run };
        assert_eq!(decide(&question), expected, "{question:?}");
    }
    // A stranger's draft that may run still needs an approval.
    let question = Question { is_draft: true, build_drafts: true, ..QUESTION };
    assert_eq!(decide(&question), TrustDecision::Wait(WAITS_FOR_APPROVAL));
}

#[test]
fn a_project_that_builds_no_pull_requests_builds_none() {
    for (trust, is_approved) in [(All, false), (Collaborators, true), (Nobody, true)] {
        let question = Question { pr_enabled: false, trust, is_approved, author_permission: Some(Admin), ..QUESTION };
        assert_eq!(decide(&question), TrustDecision::Ignore(NOT_ENABLED));
    }
}

#[test]
fn an_approval_counts_for_exactly_one_head() {
    let counts = |head: &str| Approval::Counts(head.to_owned());
    let changed = Approval::Reply(ApprovalReply::HeadChanged);
    let cases = [
        // named, recorded before the comment, current, expected
        (None, Some(A), A, counts(A)),
        (None, Some(A), B, changed.clone()), // pushed in between, whether its delivery came or not
        (None, None, A, Approval::Reply(ApprovalReply::HeadUnknown)),
        (Some(A), None, A, counts(A)),
        (Some(A), Some(B), A, counts(A)),
        (Some(A), Some(A), B, changed.clone()),
        (Some(A), Some(B), B, changed),
    ];
    for (named, recorded, current, expected) in cases {
        let question = ApprovalQuestion {
            commenter: "maintainer",
            author: "stranger",
            commenter_permission: Some(Write),
            named,
            recorded,
            current,
        };
        assert_eq!(approval(&question), expected, "{question:?}");
    }
}

#[test]
fn only_somebody_else_who_may_push_approves() {
    let cases = [
        ("maintainer", Some(Write), true),
        ("maintainer", Some(Admin), true),
        ("maintainer", Some(Read), false),
        ("maintainer", Some(Nothing), false),
        ("maintainer", None, false),
        ("author", Some(Admin), false),
        ("AUTHOR", Some(Admin), false),
    ];
    for (commenter, commenter_permission, counts) in cases {
        let question = ApprovalQuestion {
            commenter,
            author: "author",
            commenter_permission,
            named: Some(A),
            recorded: Some(A),
            current: A,
        };
        let got = approval(&question);
        assert_eq!(matches!(got, Approval::Counts(_)), counts, "{question:?}");
        // Nobody makes us comment who could not approve either.
        assert!(!matches!(got, Approval::Reply(_)));
    }
}

#[test]
fn replies_say_what_to_comment() {
    assert!(ApprovalReply::HeadChanged.text(B).starts_with("The head changed, comment again"));
    for reply in [ApprovalReply::HeadUnknown, ApprovalReply::Unclear] {
        let text = reply.text(B);
        assert!(text.contains(&["/ci run ", B].concat()), "{text}");
    }
    // What we say is never itself a command.
    for reply in [ApprovalReply::HeadChanged, ApprovalReply::HeadUnknown, ApprovalReply::Unclear] {
        assert_eq!(parse_command(&reply.text(B)), None);
    }
}

#[test]
fn a_command_is_a_line_of_its_own() {
    let run = || Some(Run { commit: None });
    let of = |hash: &str| Some(Run { commit: Some(hash.to_owned()) });
    let upper = ["/ci run ", &A.to_uppercase()].concat();
    let long = ["/ci run ", A, &A[..24]].concat();
    let with_hash = ["Looks good.\r\n\r\n/ci run ", A, "\r\n"].concat();
    let twice = ["/ci run ", A, "\n/ci run ", B].concat();
    let same_twice = ["/ci run ", A, "\nand again\n/ci run ", A].concat();
    let too_long = ["/ci run ", A, "0"].concat();
    let cases: Vec<(&str, Option<Command>)> = vec![
        ("/ci run", run()),
        ("  /ci   run  ", run()),
        ("thanks!\n/ci run\n-- me", run()),
        (&with_hash, of(A)),
        (&upper, of(A)),
        (&long, of(&long[8..])),
        ("please /ci run", None),
        ("`/ci run`", None),
        ("/CI run", None),
        ("/cirun", None),
        ("//ci run", None),
        ("", None),
        // Not understood.
        ("/ci run aaaaaaa", Some(Unclear)),
        (&too_long, Some(Unclear)),
        ("/ci run please", Some(Unclear)),
        ("/ci run this, please", Some(Unclear)),
        ("/ci", None),
        ("/ci is a folder", None),
        (&twice, Some(Unclear)),
        (&same_twice, of(A)),
    ];
    for (body, expected) in cases {
        assert_eq!(parse_command(body), expected, "{body:?}");
    }
}

#[test]
fn what_is_quoted_shown_as_code_or_hidden_is_no_command() {
    let cases = [
        ("> /ci run", false),
        (">/ci run", false),
        ("  > /ci run", false),
        (">> /ci run\n\nno", false),
        ("> do\n> /ci run\n\n/ci run", true),
        ("```\n/ci run\n```", false),
        ("```sh\n/ci run\n```\n", false),
        ("```\n/ci run", false),
        ("````\n```\n/ci run\n````", false),
        ("~~~\n/ci run\n~~~", false),
        ("~~~\n```\n/ci run\n~~~\n/ci run", true),
        ("```\nx\n```\n/ci run", true),
        ("```\nx\n``` no end\n/ci run", false),
        ("``` `inline` ```\n/ci run", true),
        ("    /ci run", false),
        ("\t/ci run", false),
        ("<!-- /ci run -->", false),
        ("<!--\n/ci run\n-->", false),
        ("<!--\nx\n-->\n/ci run", true),
        ("<!-- x -->\n/ci run", true),
    ];
    for (body, is_command) in cases {
        assert_eq!(parse_command(body).is_some(), is_command, "{body:?}");
    }
}

#[test]
fn a_huge_comment_is_read_up_to_a_bound() {
    let far = ["ü".repeat(BODY_BYTES_MAX).as_str(), "\n/ci run"].concat();
    assert_eq!(parse_command(&far), None);
    let near = ["/ci run\n", &"ü".repeat(BODY_BYTES_MAX)].concat();
    assert_eq!(parse_command(&near), Some(Run { commit: None }));
}
