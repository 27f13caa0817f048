//! What was measured of durability, day by day, as SVG: bytes that were read, bad shards by kind, how long stripes
//! stood with less margin, and losses; and the margin now.
//!
//! Written by hand, as the chart of the tests is: it is a few panels of bars.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use ashlar_cluster_audit::record::DAY_MS;
use ashlar_cluster_audit::{Kind, Loss, Tally, Window};

use crate::output::{self, human};

/// Of the whole, in pixels.
const WIDTH: f64 = 960.0;
/// Left and right of the panels.
const MARGIN: f64 = 80.0;
const TOP: f64 = 40.0;
const PANEL: f64 = 120.0;
/// Between the panels: the title and the legend of the next one.
const BETWEEN: f64 = 50.0;
const COLORS: [&str; 9] = [
    "#1f6fb2", "#d1690f", "#3a8f3a", "#7a4fa3", "#b0383f", "#8a6d3b", "#d070b0", "#606060",
    "#b0a020",
];

/// What stands in a bar from the bottom up, each with its name and color.
type Part = (String, &'static str, f64);

/// Bars of each day.
struct Panel {
    title: &'static str,
    /// Of the days of the window, in order.
    bars: Vec<Vec<Part>>,
    /// How an amount is told.
    tell: fn(f64) -> String,
}

fn count(value: f64) -> String {
    match value {
        value if value == 0.0 || value >= 10.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

fn bytes(value: f64) -> String {
    human(value as u64)
}

/// A number not below `value` of which a scale can be made: 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-9).log10().floor());
    let digits = [1.0, 2.0, 5.0, 10.0].into_iter();
    let digit = digits.clone().find(|it| it * power >= value * 0.999_999);
    digit.unwrap_or(10.0) * power
}

fn date(day: u64) -> String {
    output::time(day.saturating_mul(DAY_MS))
        .chars()
        .take(10)
        .collect()
}

fn color(index: usize) -> &'static str {
    COLORS[index % COLORS.len()]
}

/// The file as it grows.
struct Svg(String);

impl Svg {
    fn add(&mut self, what: impl Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{what}");
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn bar(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), color: &str, what: &str) {
        self.add(format_args!(
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" fill=\"{color}\">\
             <title>{what}</title></rect>"
        ));
    }

    fn panel(&mut self, top: f64, window: Window, panel: &Panel) {
        let bottom = top + PANEL;
        let mut legend: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, color, _) in panel.bars.iter().flatten().filter(|it| !it.0.is_empty()) {
            legend.insert(name, color);
        }
        self.text((MARGIN, top - 10.0), "start", panel.title);
        let mut x = MARGIN + 340.0;
        for (name, color) in legend {
            self.bar((x, top - 19.0), (10.0, 10.0), color, name);
            self.text((x + 14.0, top - 10.0), "start", name);
            x += 30.0 + 7.0 * name.len() as f64;
        }
        let of = |bar: &Vec<Part>| bar.iter().map(|part| part.2).sum::<f64>();
        let highest = panel.bars.iter().map(of).fold(0.0, f64::max);
        let scale = round_up(highest);
        for line in [0.0, 0.5, 1.0] {
            let y = bottom - PANEL * line;
            let right = WIDTH - MARGIN;
            self.add(format_args!(
                "<line x1=\"{MARGIN}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>"
            ));
            if highest > 0.0 || line == 0.0 {
                let told = (panel.tell)(scale * line);
                self.text((MARGIN - 6.0, y + 4.0), "end", &told);
            }
        }
        let each = (WIDTH - 2.0 * MARGIN) / panel.bars.len().max(1) as f64;
        for ((day, bar), at) in (window.first..).zip(&panel.bars).zip(0u32..) {
            let x = MARGIN + each * f64::from(at);
            let mut y = bottom;
            for (name, color, value) in bar.iter().filter(|part| part.2 > 0.0) {
                let height = PANEL * value / scale;
                y -= height;
                let what = format!("{}: {} {name}", date(day), (panel.tell)(*value));
                let wide = (each * 0.85).max(0.5);
                self.bar(
                    (x + (each - wide) / 2.0, y),
                    (wide, height),
                    color,
                    what.trim(),
                );
            }
        }
        self.text((MARGIN, bottom + 16.0), "start", &date(window.first));
        self.text((WIDTH - MARGIN, bottom + 16.0), "end", &date(window.last));
    }
}

/// Draws the days of a window: what was counted on each, what was found lost, and stripes by their margin now.
pub fn svg(
    window: Window,
    days: &BTreeMap<u64, Tally>,
    losses: &[Loss],
    margin: &BTreeMap<i32, u64>,
) -> String {
    let none = Tally::default();
    let all = || (window.first..=window.last).map(|day| (day, days.get(&day).unwrap_or(&none)));
    let lost_on = |day: u64| losses.iter().filter(move |it| it.found_ms / DAY_MS == day);
    let kinds = |(day, tally): (u64, &Tally)| {
        let mut found = tally.found.clone();
        // What was found of stripes that are lost stands with them.
        for (kind, _) in lost_on(day).flat_map(|loss| loss.bad.values()) {
            *found.entry(*kind).or_default() += 1;
        }
        let part = |(kind, count): (&Kind, &u64)| {
            (kind.name().to_owned(), color(*kind as usize), *count as f64)
        };
        let shards = found.iter().filter(|(kind, _)| kind.is_of_shards());
        shards.map(part).collect()
    };
    let margins = |(_, tally): (u64, &Tally)| {
        let part = |(margin, ms): (&i32, &u64)| {
            let at = usize::try_from(margin + 1).unwrap_or_default();
            (
                format!("margin {margin}"),
                color(4 + at),
                *ms as f64 / 3.6e6,
            )
        };
        tally.margin_ms.iter().map(part).collect()
    };
    let one = |color, value: f64| vec![(String::new(), color, value)];
    let panels = [
        Panel {
            title: "bytes of shards that were read, a day",
            bars: all()
                .map(|(_, it)| one(color(0), it.shard_bytes as f64))
                .collect(),
            tell: bytes,
        },
        Panel {
            title: "bad shards that were found, a day",
            bars: all().map(kinds).collect(),
            tell: count,
        },
        Panel {
            title: "hours that stripes stood with less margin, a day",
            bars: all().map(margins).collect(),
            tell: count,
        },
        Panel {
            title: "stripes that were found to be lost, a day",
            bars: all()
                .map(|(day, _)| one(color(4), lost_on(day).count() as f64))
                .collect(),
            tell: count,
        },
    ];
    let height = TOP + panels.len() as f64 * (PANEL + BETWEEN) + 40.0;
    let mut svg = Svg(String::new());
    svg.add(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>"
    ));
    for (panel, at) in panels.iter().zip(0u32..) {
        svg.panel(TOP + f64::from(at) * (PANEL + BETWEEN), window, panel);
    }
    let now = margin
        .iter()
        .map(|(margin, count)| format!("{count} can lose {margin} more"));
    let now = match margin.is_empty() {
        true => "none was looked at yet".to_owned(),
        false => now.collect::<Vec<_>>().join(", "),
    };
    svg.text(
        (MARGIN, height - 20.0),
        "start",
        &format!("stripes now: {now}"),
    );
    svg.add("</svg>");
    svg.0
}

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::DeviceNo;

    use super::*;

    #[test]
    fn each_amount_has_a_bar_of_its_height() {
        let tally = |bytes, found: &[(Kind, u64)]| Tally {
            shard_bytes: bytes,
            found: found.iter().copied().collect(),
            margin_ms: BTreeMap::from([(1, 7_200_000)]),
            ..Tally::default()
        };
        let days = BTreeMap::from([
            (20_000, tally(1 << 30, &[(Kind::Rot, 30), (Kind::Torn, 20)])),
            (20_002, tally(1 << 29, &[(Kind::Rot, 10)])),
        ]);
        let lost = Loss {
            found_ms: 20_001 * DAY_MS + 5,
            bad: BTreeMap::from([(0, (Kind::Missing, DeviceNo(1)))]),
            ..Loss::default()
        };
        let window = Window {
            first: 20_000,
            last: 20_006,
        };
        let text = svg(window, &days, &[lost], &BTreeMap::from([(2, 450)]));
        let heights = |what: &str| {
            let lines = text.lines().filter(|line| line.contains(what));
            let height = |line: &str| {
                let (_, rest) = line.split_once("height=\"").unwrap_or_default();
                rest.split('"').next().and_then(|it| it.parse::<f64>().ok())
            };
            lines.filter_map(height).collect::<Vec<_>>()
        };
        // Fifty are the highest, and the scale ends there.
        assert_eq!(heights(": 30 rot<"), [PANEL * 0.6]);
        assert_eq!(heights(": 20 torn<"), [PANEL * 0.4]);
        assert_eq!(heights("2024-10-06: 10 rot<"), [PANEL * 0.2]);
        assert_eq!(heights("2024-10-05: 1.00 missing<"), [2.4]);
        assert_eq!(heights("2.00 margin 1<"), [PANEL, PANEL]);
        assert_eq!(heights("2024-10-05: 1.00<"), [PANEL]);
        assert!(text.contains("450 can lose 2 more") && text.ends_with("</svg>\n"));
        assert_eq!(
            text.matches("<rect").count(),
            text.matches("</rect>").count() + 1
        );
        assert!(!text.contains("NaN") && !text.contains("inf"));
        let empty = svg(window, &BTreeMap::new(), &[], &BTreeMap::new());
        assert!(!empty.contains("NaN") && empty.contains("none was looked at"));
    }
}
