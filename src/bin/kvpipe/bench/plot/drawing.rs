//! The picture, and the file that it goes to.

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::Plan;
use super::super::measurement::{SizeMeasurement, Speed};
use crate::args::BenchTransport;
use crate::failure::Failure;
use crate::units::{ByteSize, Count};

/// An open file. One that was not there before goes away again unless something is written.
#[derive(Debug)]
pub(super) struct File {
    file: fs::File,
    path: PathBuf,
    remove: bool,
}

impl File {
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let remove = !path.exists();
        // What an earlier run drew stays until there is something better.
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| Failure::io(format!("writing {}", path.display()), &error))?;
        Ok(Self { file, path: path.to_owned(), remove })
    }

    pub(super) fn write(mut self, svg: &str) -> Result<(), Failure> {
        let written = self.file.set_len(0).and_then(|()| self.file.write_all(svg.as_bytes()));
        written.map_err(|error| Failure::io(format!("writing {}", self.path.display()), &error))?;
        self.remove = false;
        Ok(())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.remove {
            // It was ours, and it is empty or half written; there is nobody left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

const WIDTH: u32 = 960;
const HEIGHT: u32 = 560;
/// Where the chart begins.
const LEFT: i32 = 80;
const INK: RGBColor = RGBColor(31, 41, 55);
const FAINT: RGBColor = RGBColor(107, 114, 128);
const GRID: RGBColor = RGBColor(229, 231, 235);
const PIPE: RGBColor = RGBColor(29, 78, 216);
const LIMIT: RGBColor = RGBColor(217, 119, 6);

/// What differs between the transports.
struct Words {
    title: &'static str,
    between: &'static str,
    limit: &'static str,
    y: &'static str,
}

fn words(transport: BenchTransport) -> Words {
    match transport {
        BenchTransport::Tcp => Words {
            title: "kvpipe over TCP loopback, beside bare sockets",
            between: "two processes on one machine",
            limit: "bare socket, best read size",
            y: "throughput in GB/s (10⁹ bytes)",
        },
        BenchTransport::Nccl => Words {
            title: "kvpipe by NCCL, beside NCCL alone",
            between: "two processes on one machine",
            limit: "ncclSend and ncclRecv, best group size",
            y: "throughput in GB/s (10⁹ bytes)",
        },
        BenchTransport::Memory => Words {
            title: "kvpipe in memory, beside a channel of std",
            between: "two threads of one process",
            limit: "std::sync::mpsc, bounded",
            y: "thousands of items a second (nothing is copied)",
        },
    }
}

/// A point of a curve: log2 of the item size, and how fast.
type Point = (f64, f64);

/// What plotters may answer.
type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Sizes, RangedCoordf64>>;

/// The picture as SVG.
pub(super) fn draw(plan: &Plan, sizes: &[SizeMeasurement]) -> Result<String, Failure> {
    let mut sizes: Vec<&SizeMeasurement> = sizes.iter().collect();
    sizes.sort_by_key(|measured| measured.size);
    let mut svg = String::new();
    paint(&mut svg, plan, &sizes).map_err(|error| Failure::new(format!("drawing the plot: {error}")))?;
    Ok(svg)
}

fn paint(svg: &mut String, plan: &Plan, sizes: &[&SizeMeasurement]) -> Drawn {
    let words = words(plan.transport);
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    paint_heading(&area, plan, &words)?;
    let figure = |speed: Speed, size: usize| match plan.transport {
        BenchTransport::Tcp | BenchTransport::Nccl => speed.gigabytes(size),
        BenchTransport::Memory => speed.0 / 1e3,
    };
    let curve = |speed: fn(&SizeMeasurement) -> Speed| -> Vec<Point> {
        sizes.iter().map(|m| ((m.size as f64).log2(), figure(speed(m), m.size))).collect()
    };
    let (pipe, limit) = (curve(|measured| measured.pipe), curve(|measured| measured.limit));
    let highest = pipe.iter().chain(&limit).map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max);
    let (from, to) = (pipe.first().map_or(0.0, |p| p.0) - 0.5, pipe.last().map_or(0.0, |p| p.0) + 0.5);
    let mut chart = ChartBuilder::on(&area)
        .margin_top(116)
        .margin_right(36)
        .margin_bottom(16)
        .margin_left(16)
        .x_label_area_size(52)
        .y_label_area_size(64)
        .build_cartesian_2d(Sizes { from, to }, 0.0..highest * ROOM_ABOVE)?;
    paint_axes(&mut chart, words.y)?;
    paint_curve(&mut chart, &limit, LIMIT)?;
    paint_curve(&mut chart, &pipe, PIPE)?;
    paint_ratios(&mut chart, &pipe, &limit, highest)?;
    area.present()?;
    Ok(())
}

/// For the ratios that stand above a curve.
const ROOM_ABOVE: f64 = 1.12;
/// For those that stand below it.
const ROOM_BELOW: f64 = 0.1;

fn font(size: f64, style: FontStyle, colour: RGBColor) -> TextStyle<'static> {
    FontDesc::new(FontFamily::SansSerif, size, style).color(&colour)
}

/// Title, circumstances and legend: above the chart, where no curve runs through them.
fn paint_heading(area: &Area<'_>, plan: &Plan, words: &Words) -> Drawn {
    area.draw(&Text::new(words.title, (LEFT, 18), font(24.0, FontStyle::Bold, INK)))?;
    let rounds = Count(u64::from(plan.rounds), "round");
    let buffer = plan.buffer_size;
    let circumstances = format!("{}; medians of {rounds}; up to {buffer} on the way", words.between);
    area.draw(&Text::new(circumstances, (LEFT, 52), font(14.0, FontStyle::Normal, FAINT)))?;
    let entries = [(PIPE, "kvpipe, and its share of the limit"), (LIMIT, words.limit)];
    let mut left = LEFT;
    for (colour, name) in entries {
        area.draw(&PathElement::new([(left, 90), (left + 28, 90)], colour.stroke_width(3)))?;
        area.draw(&Circle::new((left + 14, 90), 4, colour.filled()))?;
        area.draw(&Text::new(name, (left + 38, 83), font(15.0, FontStyle::Normal, INK)))?;
        left += 320;
    }
    Ok(())
}

fn paint_axes(chart: &mut Chart<'_, '_>, y: &str) -> Drawn {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(FAINT)
        .x_desc("item size")
        .y_desc(y)
        .axis_desc_style(font(15.0, FontStyle::Normal, INK))
        .label_style(font(14.0, FontStyle::Normal, INK))
        .y_labels(8)
        .draw()?;
    Ok(())
}

fn paint_curve(chart: &mut Chart<'_, '_>, points: &[Point], colour: RGBColor) -> Drawn {
    chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(3)))?;
    chart.draw_series(points.iter().map(|&point| Circle::new(point, 4, colour.filled())))?;
    Ok(())
}

fn paint_ratios(chart: &mut Chart<'_, '_>, pipe: &[Point], limit: &[Point], highest: f64) -> Drawn {
    let style = font(15.0, FontStyle::Bold, PIPE);
    chart.draw_series(pipe.iter().zip(limit).map(|(pipe, limit)| {
        // On the side where the other curve is not, unless the axis is there.
        let below = pipe.1 <= limit.1 && pipe.1 > ROOM_BELOW * highest;
        let (at, vertical, offset) = match below {
            true => (pipe.1, VPos::Top, 10),
            false => (pipe.1.max(limit.1), VPos::Bottom, -10),
        };
        let percent = format!("{:.0} %", 100.0 * pipe.1 / limit.1);
        EmptyElement::at((pipe.0, at))
            + Text::new(percent, (0, offset), style.clone().pos(Pos::new(HPos::Center, vertical)))
    }))?;
    Ok(())
}

/// Item sizes by their log2, with labels such as `64 KiB`.
struct Sizes {
    from: f64,
    to: f64,
}

impl Ranged for Sizes {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, log2: &f64, pixels: (i32, i32)) -> i32 {
        let share = (log2 - self.from) / (self.to - self.from);
        #[expect(clippy::cast_possible_truncation, reason = "between two pixels")]
        let offset = (share * f64::from(pixels.1 - pixels.0)).round() as i32;
        pixels.0 + offset
    }

    /// Powers of two, as few as have room.
    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        const LABELS_MAX: usize = 12;
        let within: Vec<f64> =
            (0..=62).map(f64::from).filter(|power| (self.from..=self.to).contains(power)).collect();
        within.iter().copied().step_by(within.len() / (LABELS_MAX + 1) + 1).collect()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Sizes {
    fn format_ext(&self, log2: &f64) -> String {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a label is from 0 to 62"
        )]
        let power = log2.round() as u32;
        ByteSize(1_usize.checked_shl(power).unwrap_or(usize::MAX)).to_string()
    }
}
