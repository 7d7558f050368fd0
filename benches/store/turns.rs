//! Ratios of ways that were measured in turns.

/// What one way did in each turn, more being better.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Vec<f64>);

impl Turns {
    pub(crate) fn note(&mut self, speed: f64) {
        self.0.push(speed);
    }

    pub(crate) fn median(&self) -> f64 {
        Spread::of(self.0.iter().copied()).median
    }

    /// Turn by turn, how many times as fast as `other` it was.
    pub(crate) fn over(&self, other: &Self) -> Spread {
        Spread::of(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs))
    }
}

/// The middle of some numbers, and how far they lie apart.
pub(crate) struct Spread {
    least: f64,
    median: f64,
    greatest: f64,
}

impl Spread {
    fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let mut numbers: Vec<f64> = numbers.collect();
        numbers.sort_by(f64::total_cmp);
        let at = |index: usize| numbers.get(index).copied().unwrap_or(f64::NAN);
        Self { least: at(0), median: at(numbers.len() / 2), greatest: at(numbers.len().saturating_sub(1)) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{:.2} ({:.2}-{:.2})", self.median, self.least, self.greatest))
    }
}
