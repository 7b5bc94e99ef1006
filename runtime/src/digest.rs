//! The fingerprint by which results are compared across targets.

/// FNV-1a, 64 bits (Fowler, Noll & Vo), over the little-endian bytes of a sample.
///
/// Two equal digests mean equal bits; it guards against accidents, not attacks.
pub fn digest(sample: &[f32]) -> u64 {
    let mut digest = Digest::default();
    for x in sample {
        digest.update(&x.to_le_bytes());
    }
    digest.value()
}

/// A digest as it grows.
pub(crate) struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn value(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_values() {
        assert_eq!(super::digest(&[]), 0xcbf2_9ce4_8422_2325);
        // From the test vectors that the authors publish: "foob".
        let foob = f32::from_le_bytes(*b"foob");
        assert_eq!(super::digest(&[foob]), 0xdd12_0e79_0c25_12af);
    }
}
