//! Randomness without state: everything about an event is drawn from a hash of its id.

/// The golden-ratio step of SplitMix64.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014): a bijection of 64 bits that passes for random.
pub(crate) const fn mix64(value: u64) -> u64 {
    let mut z = value.wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The draws that belong to one hash: always the same ones, in the same order.
#[derive(Debug, Clone)]
pub(crate) struct Draws(u64);

impl Draws {
    /// The draws of `hash`.
    pub(crate) const fn new(hash: u64) -> Self {
        Self(hash)
    }

    /// The next 64 bits.
    pub(crate) const fn next(&mut self) -> u64 {
        let drawn = mix64(self.0);
        self.0 = self.0.wrapping_add(STEP);
        drawn
    }

    /// Uniform in `[0, 1)`, with the 53 bits that an `f64` can hold.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `0..bound`, by multiplication (Lemire); 0 for a bound of 0. The bias is
    /// below `bound / 2^64`.
    pub(crate) const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }

    /// One of `items`, which must not be empty.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix64_gives_the_published_sequence() {
        // The first outputs of SplitMix64 seeded with 1234567.
        let mut draws = Draws::new(1_234_567);
        assert_eq!(draws.next(), 6_457_827_717_110_365_317);
        assert_eq!(draws.next(), 3_203_168_211_198_807_973);
        assert_eq!(draws.next(), 9_817_491_932_198_370_423);
    }

    #[test]
    fn draws_stay_in_their_range() {
        let mut draws = Draws::new(7);
        assert_eq!(draws.below(0), 0);
        for _ in 0..10_000 {
            assert!(draws.below(3) < 3);
            assert!((0.0..1.0).contains(&draws.unit()));
        }
    }
}
