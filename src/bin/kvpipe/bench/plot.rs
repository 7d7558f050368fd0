//! Throughput by item size, drawn.

use std::path::Path;

use super::Plan;
use super::measurement::SizeMeasurement;
use crate::failure::Failure;

/// A file to draw into.
pub(super) struct PlotFile;

impl PlotFile {
    pub(super) fn create(_: &Path) -> Result<Self, Failure> {
        Err(Failure::usage(
            "--plot needs a build with the feature \"plot\": cargo build --release --features plot",
        ))
    }

    pub(super) fn draw(self, _: &Plan, _: &[SizeMeasurement]) -> Result<(), Failure> {
        Ok(())
    }
}
