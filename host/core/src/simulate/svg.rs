//! An outcome as a picture: utilisation over time above, waits by project below. Start at [`svg`].

use std::fmt::Write as _;

use super::outcome::{Outcome, ProjectOutcome};

const WIDTH: f64 = 960.0;
/// Left of the plots, for labels.
const LEFT: f64 = 190.0;
const PLOT: f64 = WIDTH - LEFT - 90.0;
const TIMELINE_TOP: f64 = 70.0;
const TIMELINE_HEIGHT: f64 = 180.0;
const BARS_TOP: f64 = TIMELINE_TOP + TIMELINE_HEIGHT + 70.0;
const BAR: f64 = 22.0;
/// Projects with a bar: those with the most work.
const PROJECTS_MAX: usize = 25;

/// Draws an outcome. `title` may be anything.
pub fn svg(outcome: &Outcome, title: &str) -> String {
    let mut projects: Vec<&ProjectOutcome> = outcome.projects.iter().filter(|project| project.jobs > 0).collect();
    projects.sort_by(|a, b| b.work_s.total_cmp(&a.work_s));
    projects.truncate(PROJECTS_MAX);
    let height = BARS_TOP + BAR * projects.len() as f64 + 40.0;
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"17\" font-weight=\"bold\">{}</text>\n\
         <text x=\"{LEFT}\" y=\"46\" fill=\"#555\">{}</text>",
        escaped(title),
        escaped(&summary(outcome)),
    );
    timeline(&mut out, outcome);
    bars(&mut out, &projects);
    out.push_str("</svg>\n");
    out
}

fn summary(outcome: &Outcome) -> String {
    let fairness = outcome.fairness.map_or_else(|| "not contended".to_owned(), |index| format!("fairness {index:.3}"));
    format!(
        "{} jobs on {} slots: {} (at best {}), utilisation {:.1} %, {fairness}",
        outcome.jobs,
        outcome.slots,
        span(outcome.makespan_s),
        span(outcome.bounds.makespan_s()),
        100.0 * outcome.utilisation,
    )
}

fn timeline(out: &mut String, outcome: &Outcome) {
    let bottom = TIMELINE_TOP + TIMELINE_HEIGHT;
    let end_s = outcome.timeline.last().map_or(1.0, |sample| sample.to_s).max(f64::MIN_POSITIVE);
    let x = |at_s: f64| LEFT + PLOT * at_s / end_s;
    let mut area = format!("M{LEFT:.1} {bottom:.1}");
    let waiting_max = outcome.timeline.iter().map(|sample| sample.waiting).max().unwrap_or(0).max(1);
    let mut waiting = String::new();
    for sample in &outcome.timeline {
        let y = bottom - TIMELINE_HEIGHT * sample.utilisation.clamp(0.0, 1.0);
        let _ = write!(area, "L{:.1} {y:.1}L{:.1} {y:.1}", x(sample.from_s), x(sample.to_s));
        let y = bottom - TIMELINE_HEIGHT * sample.waiting as f64 / waiting_max as f64;
        let _ = write!(waiting, "{:.1},{y:.1} ", x(sample.to_s));
    }
    let _ = writeln!(
        out,
        "<path d=\"{area}L{:.1} {bottom:.1}Z\" fill=\"#7fb3d5\"/>\n\
         <polyline points=\"{waiting}\" fill=\"none\" stroke=\"#c0392b\" stroke-width=\"1.5\"/>\n\
         <path d=\"M{LEFT} {TIMELINE_TOP}V{bottom}H{:.1}\" fill=\"none\" stroke=\"#333\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">100 %</text>\n\
         <text x=\"{:.1}\" y=\"{bottom:.1}\" text-anchor=\"end\">0</text>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#2e6f9e\">utilisation</text>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#c0392b\">{waiting_max} ready</text>\n\
         <text x=\"{LEFT}\" y=\"{:.1}\">0</text>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        x(end_s),
        x(end_s),
        LEFT - 8.0,
        TIMELINE_TOP + 10.0,
        LEFT - 8.0,
        LEFT - 8.0,
        TIMELINE_TOP + TIMELINE_HEIGHT / 2.0,
        LEFT + PLOT + 6.0,
        TIMELINE_TOP + 10.0,
        bottom + 18.0,
        x(end_s),
        bottom + 18.0,
        span(end_s),
    );
}

fn bars(out: &mut String, projects: &[&ProjectOutcome]) {
    let longest_s = projects.iter().map(|project| project.waits.p95_s).fold(f64::MIN_POSITIVE, f64::max);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"#555\">how long ready jobs waited, by project: mean (dark), 95 % (light)</text>",
        BARS_TOP - 12.0
    );
    for (row, project) in projects.iter().enumerate() {
        let y = BARS_TOP + BAR * row as f64;
        let width = |seconds: f64| PLOT * (seconds / longest_s).clamp(0.0, 1.0);
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#f5cba7\"/>\
             <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#ca6f1e\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#555\">{}</text>",
            LEFT - 8.0,
            y + 14.0,
            escaped(&shortened(&project.name)),
            width(project.waits.p95_s),
            BAR - 6.0,
            width(project.waits.mean_s),
            BAR - 6.0,
            LEFT + width(project.waits.p95_s.max(project.waits.mean_s)) + 6.0,
            y + 14.0,
            span(project.waits.p95_s),
        );
    }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= 24 {
        return name.to_owned();
    }
    name.chars().take(23).chain(['…']).collect()
}

fn span(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Names come from outside.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            c if c.is_control() => " ".to_owned(),
            c => c.to_string(),
        })
        .collect()
}
