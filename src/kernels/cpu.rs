//! What this CPU can do, found out at run time, and functions compiled once for each kind.

/// Instruction sets that kernels tell apart, each including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whatever the target has by default: SSE2 or NEON.
    Portable,
    /// 256-bit vectors and fused multiply-add (x86-64-v3).
    Avx2,
    /// 512-bit vectors (x86-64-v4).
    Avx512,
    /// … and products of bf16 pairs.
    Avx512Bf16,
    /// … and tiles, with products of bf16 pairs (AMX), which the system lets this process use.
    Amx,
}

/// A level that the CPU is known to have; the proof that kernels compiled for it may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu(Level);

impl Cpu {
    /// The fastest level: the highest one, unless its products of pairs are slower than those of f32.
    pub fn best() -> Self {
        Self(match detect() {
            Level::Avx512Bf16 if pairs_are_slow() => Level::Avx512,
            level => level,
        })
    }

    /// Each level there is, lowest first.
    #[cfg(test)]
    pub fn each() -> impl Iterator<Item = Self> {
        use Level::{Amx, Avx2, Avx512, Avx512Bf16, Portable};
        [Portable, Avx2, Avx512, Avx512Bf16, Amx]
            .into_iter()
            .filter(|&level| level <= detect())
            .map(Self)
    }

    pub fn level(self) -> Level {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma")) {
        Level::Portable
    } else if !(has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")) {
        Level::Avx2
    } else if !has!("avx512bf16") {
        Level::Avx512
    } else if tiles_may_be_used() {
        Level::Amx
    } else {
        Level::Avx512Bf16
    }
}

/// Whether bf16 pairs are at half the rate of f32: Intel's cores from Golden Cove on (Sapphire, Emerald and Granite Rapids)
/// are made to multiply bf16 in tiles, which virtual machines often hide. Seen on a core of an Emerald Rapids: 81 GFLOP/s in
/// pairs, 165 in f32. AVX512-FP16 tells these cores from Intel's earlier ones.
#[cfg(target_arch = "x86_64")]
fn pairs_are_slow() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    /// Leaf 0's EBX, EDX and ECX.
    const INTEL: [u8; 12] = *b"GenuineIntel";
    /// Leaf 7's bit of EDX.
    const FP16: u32 = 1 << 23;

    static SLOW: OnceLock<bool> = OnceLock::new();
    *SLOW.get_or_init(|| {
        let vendor = __cpuid(0);
        let words = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        words.as_flattened() == INTEL && __cpuid_count(7, 0).edx & FP16 != 0
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn pairs_are_slow() -> bool {
    false
}

/// Whether the CPU has tiles as the kernels know them, and the system saves them when it switches threads:
/// Linux does so once a process has asked for it. Found out once, as both questions take long.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles_may_be_used() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    use std::sync::OnceLock;

    use nix::libc::{SYS_arch_prctl, syscall};

    /// Bits of leaf 7's EDX: AMX-BF16 and AMX-TILE.
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    /// XCR0's bits of the tiles' shapes and of the tiles.
    const STATE: u64 = 1 << 17 | 1 << 18;
    /// From the kernel's `asm/prctl.h`: ask for a part of the state; the tiles are number 18.
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const TILES: i64 = 18;

    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        if __cpuid(0).eax < 0x1D || __cpuid_count(7, 0).edx & FEATURES != FEATURES {
            return false;
        }
        // Palette 1: bytes of all tiles and of each, bytes of a row, tiles, rows.
        let palette = __cpuid_count(0x1D, 1);
        let shapes = [palette.eax, palette.ebx, palette.ecx & 0xFFFF];
        if shapes != [8192 | 1024 << 16, 64 | 8 << 16, 16] {
            return false;
        }
        #[target_feature(enable = "xsave")]
        fn enabled() -> u64 {
            // SAFETY: register 0 always exists.
            unsafe { _xgetbv(0) }
        }
        // SAFETY: a CPU with AVX-512 in use has XSAVE in use.
        if unsafe { enabled() } & STATE != STATE {
            return false;
        }
        // SAFETY: the call reads no memory; it only changes what the system saves for this process.
        unsafe { syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILES) == 0 }
    })
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tiles_may_be_used() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// Bytes of a core's L2 cache, or a cautious guess.
pub fn l2_bytes() -> usize {
    const GUESS: usize = 512 << 10;
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        use std::sync::OnceLock;

        /// AMD's leaf of caches, where Intel's CPUs have their L2 cache too: its KiB are the upper half of ECX.
        const CACHES: u32 = 0x8000_0006;
        static BYTES: OnceLock<usize> = OnceLock::new();
        *BYTES.get_or_init(|| {
            let known = __cpuid(0x8000_0000).eax >= CACHES;
            match __cpuid(CACHES).ecx >> 16 {
                kib if known && kib > 0 => (kib as usize) << 10,
                _ => GUESS,
            }
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    GUESS
}

/// `a * b + c`, rounded once where `FUSED` says that the caller is compiled for a CPU that can.
#[inline(always)]
pub fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED || cfg!(target_arch = "aarch64") {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// Defines `fn name(cpu: Cpu, …)` whose body is compiled for each [`Level`]. What the body calls must be
/// `#[inline(always)]`.
///
/// `fn name<S: Lanes>(…)` writes its vectors out, for any [`Lanes`](super::lanes::Lanes): fast at any
/// optimisation level; it may have more type parameters. `fn name(…)` leaves plain loops to the compiler; the constant `FUSED` says whether
/// the CPU has a fused multiply-add.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name(cpu: $crate::kernels::cpu::Cpu, $($arg: $ty),*) {
            #[inline(always)]
            #[allow(clippy::extra_unused_type_parameters, reason = "not every body uses FUSED")]
            fn body<const FUSED: bool>($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::cpu::Level;
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) {
                    body::<true>($($arg),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) {
                    body::<true>($($arg),*);
                }
                match cpu.level() {
                    // SAFETY: `cpu` proves that the CPU has the features.
                    Level::Avx512 | Level::Avx512Bf16 | Level::Amx => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Portable => {}
                }
            }
            let _ = cpu;
            body::<false>($($arg),*);
        }
    };
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$lanes:ident: Lanes $(, $kind:ident: $bound:path)*>($($arg:ident: $ty:ty),* $(,)?) $body:block
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "slices with their shapes")]
        $vis fn $name<$($kind: $bound),*>(cpu: $crate::kernels::cpu::Cpu, $($arg: $ty),*) {
            use $crate::kernels::{cpu::Level, lanes};
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "slices with their shapes")]
            fn body<$lanes: lanes::Lanes $(, $kind: $bound)*>($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments, reason = "slices with their shapes")]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512<$($kind: $bound),*>($($arg: $ty),*) {
                    body::<lanes::Avx512<false> $(, $kind)*>($($arg),*);
                }
                #[allow(clippy::too_many_arguments, reason = "slices with their shapes")]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
                fn avx512_bf16<$($kind: $bound),*>($($arg: $ty),*) {
                    body::<lanes::Avx512<true> $(, $kind)*>($($arg),*);
                }
                #[allow(clippy::too_many_arguments, reason = "slices with their shapes")]
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$($kind: $bound),*>($($arg: $ty),*) {
                    body::<lanes::Avx2 $(, $kind)*>($($arg),*);
                }
                match cpu.level() {
                    // SAFETY: `cpu` proves that the CPU has the features.
                    Level::Avx512Bf16 | Level::Amx => return unsafe { avx512_bf16::<$($kind),*>($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx512 => return unsafe { avx512::<$($kind),*>($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2::<$($kind),*>($($arg),*) },
                    Level::Portable => {}
                }
            }
            debug_assert!(cfg!(not(target_arch = "x86_64")) || cpu.level() == Level::Portable);
            body::<lanes::Portable $(, $kind)*>($($arg),*);
        }
    };
}
pub(crate) use multiversion;
