//! A chart of a run, as SVG: throughput (a panel for each line) and 99th percentile over time, and what was
//! done to the store meanwhile.
//!
//! Written by hand: it is a few panels of lines. The one library of some size for this had no release for two
//! years when this was written.

use std::fmt::Write;

use crate::history::Operation;

/// Width of a second, in pixels, and the bounds of the whole.
const SECOND: f64 = 110.0;
const WIDTH_MIN: f64 = 1100.0;
const WIDTH_MAX: f64 = 16_000.0;
/// Left and right of the panels.
const MARGIN: f64 = 70.0;
/// Heights, from the top: title and labels of faults, panels, space between.
const LABELS: f64 = 190.0;
const PANEL: f64 = 170.0;
const BETWEEN: f64 = 30.0;
const COLORS: [&str; 4] = ["#1f6fb2", "#d1690f", "#3a8f3a", "#7a4fa3"];

/// Something that was done to the store.
#[derive(Clone, Debug)]
pub struct Span {
    /// What, to what.
    pub label: String,
    /// From when to when, in nanoseconds of the run's clock.
    pub from: u64,
    /// Until when.
    pub to: u64,
    /// The longest time without service that it brought, from and to.
    pub gap: (u64, u64),
}

/// One line.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it counts.
    pub name: String,
    /// When each operation was served and how long it took, in nanoseconds; in any order.
    pub served: Vec<(u64, u64)>,
}

impl Series {
    /// The operations that `counts`, as far as they were served.
    pub fn of(name: &str, operations: &[Operation], counts: impl Fn(&Operation) -> bool) -> Series {
        let wanted = |o: &&Operation| o.served() && counts(o);
        Series {
            name: name.to_owned(),
            served: operations
                .iter()
                .filter(wanted)
                .map(|o| (o.ret, o.ret - o.invoke))
                .collect(),
        }
    }
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// How long the run took, in nanoseconds.
    pub length: u64,
    /// How much time a point stands for, in nanoseconds.
    pub bucket: u64,
    /// The lines.
    pub series: Vec<Series>,
    /// The faults.
    pub spans: Vec<Span>,
}

/// Of one bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Point {
    per_second: f64,
    p99_ms: Option<f64>,
}

/// What each bucket holds.
fn points(series: &Series, length: u64, bucket: u64) -> Vec<Point> {
    let bucket = bucket.max(1);
    let count = usize::try_from(length.div_ceil(bucket)).unwrap_or(0);
    let mut taken: Vec<Vec<u64>> = vec![Vec::new(); count];
    for (at, took) in &series.served {
        let index = usize::try_from(at / bucket).unwrap_or(usize::MAX);
        if let Some(taken) = taken.get_mut(index) {
            taken.push(*took);
        }
    }
    let point = |mut taken: Vec<u64>| {
        taken.sort_unstable();
        let p99 = taken.get((taken.len() * 99).div_ceil(100).saturating_sub(1));
        Point {
            per_second: taken.len() as f64 * 1e9 / bucket as f64,
            p99_ms: p99.map(|ns| *ns as f64 / 1e6),
        }
    };
    taken.into_iter().map(point).collect()
}

/// Text as it may stand in an SVG file.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A round number not below `value`: 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-9).log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|digit| digit * power >= value * 0.999_999);
    digit.unwrap_or(10.0) * power
}

/// The file as it grows.
struct Page {
    text: String,
}

impl Page {
    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.text.write_fmt(element);
        self.text.push('\n');
    }

    fn label(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        self.add(format_args!(
            r##"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"##,
            escape(text)
        ));
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), color: &str) {
        self.add(format_args!(
            r##"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{color}"/>"##
        ));
    }

    fn path(&mut self, points: &str, color: &str) {
        self.add(format_args!(
            r##"<path d="{points}" fill="none" stroke="{color}" stroke-width="1.3"/>"##
        ));
    }
}

impl Chart {
    /// The chart as an SVG file.
    pub fn svg(&self) -> String {
        let seconds = self.length as f64 / 1e9;
        let plot = (seconds * SECOND).clamp(WIDTH_MIN, WIDTH_MAX);
        let x = |ns: u64| MARGIN + plot * ns as f64 / self.length.max(1) as f64;
        let panels = self.series.len() as f64 + 1.0;
        let (width, bottom) = (
            plot + 2.0 * MARGIN,
            LABELS + panels * (PANEL + BETWEEN) - BETWEEN,
        );
        let height = bottom + 40.0;
        let mut page = Page {
            text: String::new(),
        };
        page.add(format_args!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" font-family="sans-serif" font-size="11">"##
        ));
        page.add(format_args!(
            r##"<rect width="{width:.0}" height="{height:.0}" fill="white"/>"##
        ));
        page.label(MARGIN, 18.0, "start", &self.title);
        for (index, series) in self.series.iter().enumerate() {
            let (color, left) = (COLORS[index % COLORS.len()], MARGIN + 130.0 * index as f64);
            page.line((left, 34.0), (left + 22.0, 34.0), color);
            page.label(left + 28.0, 38.0, "start", &series.name);
        }
        self.spans(&mut page, x, bottom);
        let all: Vec<Vec<Point>> = self
            .series
            .iter()
            .map(|s| points(s, self.length, self.bucket))
            .collect();
        for (index, points) in all.iter().enumerate() {
            let top = LABELS + (PANEL + BETWEEN) * index as f64;
            self.throughput(&mut page, &x, top, index, points);
        }
        self.latency(&mut page, &x, bottom - PANEL, &all);
        let step = if seconds > 120.0 { 10 } else { 1 };
        for second in (0..=seconds as u64).step_by(step) {
            let at = x(second * 1_000_000_000);
            page.line((at, bottom), (at, bottom + 4.0), "#555");
            page.label(at, bottom + 17.0, "middle", &format!("{second} s"));
        }
        page.add(format_args!("</svg>"));
        page.text
    }

    fn spans(&self, page: &mut Page, x: impl Fn(u64) -> f64, bottom: f64) {
        for (index, span) in self.spans.iter().enumerate() {
            let (from, to) = (x(span.from), x(span.to));
            let wide = (to - from).max(1.0);
            let tall = bottom - LABELS;
            page.add(format_args!(
                "<rect x=\"{from:.1}\" y=\"{LABELS}\" width=\"{wide:.1}\" height=\"{tall:.1}\" \
                 fill=\"#c33\" fill-opacity=\"0.09\"/>"
            ));
            // The gap itself: a bar above the panels, and a shade over them that leaves the lines legible.
            let (start, end) = (x(span.gap.0), x(span.gap.1));
            let wide = (end - start).max(1.0);
            for (top, tall, shade) in [(LABELS, tall, 0.18), (LABELS - 7.0, 7.0, 1.0)] {
                page.add(format_args!(
                    "<rect x=\"{start:.1}\" y=\"{top}\" width=\"{wide:.1}\" height=\"{tall:.1}\" \
                     fill=\"#c33\" fill-opacity=\"{shade}\"/>"
                ));
            }
            // Four rows, so that neighbours do not write over each other.
            let y = 66.0 + 32.0 * (index % 4) as f64;
            page.line((from, y + 15.0), (from, LABELS), "#c99");
            page.label(from, y, "start", &span.label);
            let gap = format!("gap {:.0} ms", (span.gap.1 - span.gap.0) as f64 / 1e6);
            page.label(from, y + 13.0, "start", &gap);
        }
    }

    fn frame(&self, page: &mut Page, x: &impl Fn(u64) -> f64, top: f64, title: &str) {
        let (left, right) = (x(0), x(self.length));
        page.line((left, top), (left, top + PANEL), "#555");
        page.line((left, top + PANEL), (right, top + PANEL), "#555");
        page.label(left + 6.0, top + 12.0, "start", title);
    }

    fn throughput(
        &self,
        page: &mut Page,
        x: &impl Fn(u64) -> f64,
        top: f64,
        series: usize,
        points: &[Point],
    ) {
        let name = self.series.get(series).map_or("", |s| s.name.as_str());
        let each = self.bucket / 1_000_000;
        self.frame(page, x, top, &format!("{name} per second, each {each} ms"));
        let scale = round_up(points.iter().map(|p| p.per_second).fold(1.0, f64::max));
        for part in 0..=4 {
            let value = scale * f64::from(part) / 4.0;
            let y = top + PANEL * (1.0 - value / scale);
            page.line((x(0), y), (x(self.length), y), "#e4e4e4");
            page.label(MARGIN - 6.0, y + 4.0, "end", &format!("{value:.0}"));
        }
        let mut path = String::new();
        for (index, point) in points.iter().enumerate() {
            let y = top + PANEL * (1.0 - point.per_second / scale);
            let from = x((index as u64 * self.bucket).min(self.length));
            let to = x(((index as u64 + 1) * self.bucket).min(self.length));
            let verb = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{verb}{from:.1} {y:.1}L{to:.1} {y:.1}");
        }
        page.path(&path, COLORS[series % COLORS.len()]);
    }

    fn latency(&self, page: &mut Page, x: &impl Fn(u64) -> f64, top: f64, all: &[Vec<Point>]) {
        self.frame(
            page,
            x,
            top,
            "99th percentile of the same, by when it was answered, ms",
        );
        let known = || all.iter().flatten().filter_map(|p| p.p99_ms);
        let lowest = known().fold(1.0, f64::min).max(0.01).log10().floor();
        let highest = known().fold(1.0, f64::max).log10().ceil().max(lowest + 1.0);
        let y = |ms: f64| {
            let place = (ms.max(0.001).log10() - lowest) / (highest - lowest);
            top + PANEL * (1.0 - place.clamp(0.0, 1.0))
        };
        let mut decade = lowest;
        while decade <= highest {
            let value = 10f64.powf(decade);
            page.line((x(0), y(value)), (x(self.length), y(value)), "#e4e4e4");
            page.label(MARGIN - 6.0, y(value) + 4.0, "end", &format!("{value}"));
            decade += 1.0;
        }
        for (points, color) in all.iter().zip(COLORS.iter().cycle()) {
            let mut path = String::new();
            let mut drawing = false;
            for (index, point) in points.iter().enumerate() {
                // Where nothing was answered there is no percentile, and no line.
                let Some(ms) = point.p99_ms else {
                    drawing = false;
                    continue;
                };
                let at = x((index as u64 * self.bucket + self.bucket / 2).min(self.length));
                let verb = if drawing { 'L' } else { 'M' };
                let _ = write!(path, "{verb}{at:.1} {:.1}", y(ms));
                if !drawing {
                    let _ = write!(path, "h0.5");
                }
                drawing = true;
            }
            page.path(&path, color);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn buckets_count_what_was_served_in_them() {
        let mut served: Vec<(u64, u64)> = (0..200).map(|i| (i * MS / 10, MS)).collect();
        served.push((5 * MS, 90 * MS));
        served.push((5 * MS, 91 * MS));
        served.push((45 * MS, 2 * MS));
        served.push((500 * MS, MS));
        let series = Series {
            name: "puts".to_owned(),
            served,
        };
        let points = points(&series, 50 * MS, 20 * MS);
        assert_eq!(points.len(), 3);
        assert_eq!(points[0].per_second, 202.0 * 50.0);
        assert_eq!(points[0].p99_ms, Some(1.0), "two of 202 are above it");
        assert_eq!(
            points[1],
            Point {
                per_second: 0.0,
                p99_ms: None
            }
        );
        assert_eq!(points[2].p99_ms, Some(2.0));
    }

    #[test]
    fn the_file_holds_every_fault_and_is_well_formed() {
        let chart = Chart {
            title: "a run <of> two & more".to_owned(),
            length: 3_000 * MS,
            bucket: 50 * MS,
            series: vec![Series {
                name: "gets".to_owned(),
                served: (0..1000).map(|i| (i * 3 * MS, i * 1000)).collect(),
            }],
            spans: vec![Span {
                label: "kill head (node 1)".to_owned(),
                from: 500 * MS,
                to: 1500 * MS,
                gap: (510 * MS, 593 * MS),
            }],
        };
        let svg = chart.svg();
        assert!(
            svg.contains("kill head (node 1)") && svg.contains("gap 83 ms"),
            "{svg}"
        );
        assert!(svg.contains("a run &lt;of&gt; two &amp; more"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let (mut open, mut rest) = (0, svg.as_str());
        while let Some(at) = rest.find('<') {
            let end = rest.find('>').expect("each tag ends");
            let tag = &rest[at..end];
            open += if tag.starts_with("</") {
                -1
            } else {
                i32::from(!tag.ends_with('/'))
            };
            rest = &rest[end + 1..];
        }
        assert_eq!(open, 0, "each element is closed");
    }

    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!(round_up(1.0), 1.0);
        assert_eq!(round_up(1100.0), 2000.0);
        assert_eq!(round_up(4200.0), 5000.0);
        assert_eq!(round_up(8000.0), 10_000.0);
    }
}
