//! Which entity an event is about: a Zipf distribution, since a few users do most of the clicking.

use super::hash::Draws;
use super::mix::Mix;

/// Ranks `1..=count`, where rank `k` has a weight of `k^-exponent`.
///
/// Sampled by rejection-inversion (Hörmann, Derflinger: "Rejection-inversion to generate
/// variates from monotone discrete distributions", ACM TOMACS 6/3, 1996): no table, constant
/// time for any count, fewer than two draws on average.
#[derive(Debug, Clone)]
pub(crate) struct Zipf {
    count: f64,
    exponent: f64,
    /// The integral of the weight up to 1.5, less the weight of rank 1.
    integral_first: f64,
    /// The integral of the weight up to `count + 0.5`.
    integral_last: f64,
    /// Below this distance from the rank a sample is taken without a further check.
    squeeze: f64,
}

impl Zipf {
    /// A distribution over `1..=count` (at least 1). Exponent 0 is uniform, and what stands for
    /// one that is not a number: rejection would never end with it.
    pub(crate) fn new(count: u64, exponent: f64) -> Self {
        let count = count.max(1) as f64;
        let exponent = if exponent.is_nan() { 0.0 } else { exponent.clamp(0.0, Mix::MAX_ZIPF) };
        let mut zipf =
            Self { count, exponent, integral_first: 0.0, integral_last: 0.0, squeeze: 0.0 };
        zipf.integral_first = zipf.integral(1.5) - 1.0;
        zipf.integral_last = zipf.integral(count + 0.5);
        zipf.squeeze = 2.0 - zipf.inverse_integral(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    /// The rank that `draws` leads to.
    pub(crate) fn sample(&self, draws: &mut Draws) -> u64 {
        loop {
            let area =
                self.integral_last + draws.unit() * (self.integral_first - self.integral_last);
            let x = self.inverse_integral(area);
            let rank = (x + 0.5).floor().clamp(1.0, self.count);
            if rank - x <= self.squeeze || area >= self.integral(rank + 0.5) - self.weight(rank) {
                return rank as u64;
            }
        }
    }

    /// `x^-exponent`.
    fn weight(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// The integral of the weight from 1 to `x`: `(x^(1-e) - 1) / (1-e)`, or `ln x` for `e = 1`.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        expm1_ratio((1.0 - self.exponent) * log) * log
    }

    /// The inverse of [`Zipf::integral`].
    fn inverse_integral(&self, area: f64) -> f64 {
        // Rounding can push the argument below the pole of the logarithm.
        let t = (area * (1.0 - self.exponent)).max(-1.0);
        (ln1p_ratio(t) * area).exp()
    }
}

/// `(e^x - 1) / x`, also near 0.
fn expm1_ratio(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x * 0.5 }
}

/// `ln(1 + x) / x`, also near 0.
fn ln1p_ratio(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x * 0.5 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each rank came in `draws` draws; index 0 is rank 1.
    fn histogram(count: u64, exponent: f64, draws: u64) -> Vec<u64> {
        let zipf = Zipf::new(count, exponent);
        let mut seen = vec![0; count as usize];
        for seed in 0..draws {
            let rank = zipf.sample(&mut Draws::new(super::super::hash::mix64(seed)));
            seen[rank as usize - 1] += 1;
        }
        seen
    }

    #[test]
    fn ranks_come_as_often_as_the_formula_says() {
        for exponent in [0.0, 0.5, 1.0, 1.1, 2.5] {
            let draws = 200_000;
            let seen = histogram(50, exponent, draws);
            let total: f64 = (1..=50).map(|k| f64::from(k).powf(-exponent)).sum();
            for (index, &times) in seen.iter().enumerate() {
                let share = ((index + 1) as f64).powf(-exponent) / total;
                let expected = share * draws as f64;
                let deviation = (expected * (1.0 - share)).sqrt();
                assert!(
                    (times as f64 - expected).abs() < 6.0 * deviation + 1.0,
                    "exponent {exponent}, rank {}: {times}, expected {expected}",
                    index + 1
                );
            }
        }
    }

    #[test]
    fn extreme_counts_stay_in_range() {
        assert_eq!(histogram(1, 1.1, 100), [100]);
        for exponent in [0.0, 1.0, 1.1, 10.0] {
            let zipf = Zipf::new(1_000_000_000_000, exponent);
            for seed in 0..1000 {
                let rank = zipf.sample(&mut Draws::new(seed));
                assert!((1..=1_000_000_000_000).contains(&rank));
            }
        }
    }
}
