//! The instructions. They are written out as Rust's own functions for them are not stable; compilers never
//! use tiles of their own accord, so what one `asm!` leaves in them the next one finds.

use std::arch::asm;

use super::{Shapes, Tiles};

/// For CPUs of [`Level::Amx`](crate::kernels::cpu::Level::Amx).
pub struct Hardware;

// SAFETY of all blocks in this impl: the trait's users promise that the instructions exist and may be used.
// None of them changes flags, the stack, or anything but tiles and what `store` is told to write.
impl Tiles for Hardware {
    #[inline(always)]
    unsafe fn configure(shapes: &Shapes) {
        // SAFETY: see above; `shapes` is 64 readable bytes.
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) shapes.0.as_ptr(),
                options(nostack, preserves_flags, readonly),
            );
        }
    }
    #[inline(always)]
    unsafe fn release() {
        // SAFETY: see above.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
    #[inline(always)]
    unsafe fn zero<const T: usize>() {
        // SAFETY: see above.
        unsafe { asm!("tilezero tmm{}", const T, options(nostack, preserves_flags, nomem)) };
    }
    #[inline(always)]
    unsafe fn load<const T: usize>(from: *const u32, stride: usize) {
        // SAFETY: see above; the rows are readable, says the caller.
        unsafe {
            asm!(
                "tileloadd tmm{tile}, [{from} + {stride} * 1]",
                tile = const T,
                from = in(reg) from,
                stride = in(reg) stride,
                options(nostack, preserves_flags, readonly),
            );
        }
    }
    #[inline(always)]
    unsafe fn store<const T: usize>(to: *mut f32, stride: usize) {
        // SAFETY: see above; the rows are writable, says the caller.
        unsafe {
            asm!(
                "tilestored [{to} + {stride} * 1], tmm{tile}",
                tile = const T,
                to = in(reg) to,
                stride = in(reg) stride,
                options(nostack, preserves_flags),
            );
        }
    }
    #[inline(always)]
    unsafe fn multiply<const RESULT: usize, const LEFT: usize, const RIGHT: usize>() {
        // SAFETY: see above.
        unsafe {
            asm!(
                "tdpbf16ps tmm{}, tmm{}, tmm{}",
                const RESULT,
                const LEFT,
                const RIGHT,
                options(nostack, preserves_flags, nomem),
            );
        }
    }
}
