//! Throughput by item size, drawn into a file. Needs the feature `plot`.

#[cfg(feature = "plot")]
mod drawing;

use std::path::Path;

use super::Plan;
use super::measurement::SizeMeasurement;
use crate::failure::Failure;

/// A file that can be written to.
#[derive(Debug)]
pub(super) struct PlotFile {
    #[cfg(feature = "plot")]
    file: drawing::File,
}

#[cfg(not(feature = "plot"))]
impl PlotFile {
    pub(super) fn create(_: &Path) -> Result<Self, Failure> {
        Err(Failure::usage("--plot needs the feature \"plot\", which this program was built without")
            .hint("cargo build --release --features plot"))
    }

    pub(super) fn draw(self, _: &Plan, _: &[SizeMeasurement]) -> Result<(), Failure> {
        Ok(())
    }
}

#[cfg(feature = "plot")]
impl PlotFile {
    /// Finds out that the file can't be written before anything is measured for it.
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        drawing::File::create(path).map(|file| Self { file })
    }

    pub(super) fn draw(self, plan: &Plan, sizes: &[SizeMeasurement]) -> Result<(), Failure> {
        self.file.write(&drawing::draw(plan, sizes)?)
    }
}
