//! Large buffers on huge pages: a step walks through hundreds of megabytes, and with 4 KiB pages the
//! processor spends a tenth of it on address translation.
//!
//! An allocator is the one place that reaches every buffer, candle's included. The kernel is only asked
//! (`madvise`); where it does not give huge pages nothing changes but the alignment.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Range;

/// A huge page of x86-64, and the usual one of AArch64.
const HUGE_PAGE: usize = 2 << 20;
/// Allocations from this size on are worth a huge page of their own, most of which they fill.
const LARGE: usize = HUGE_PAGE / 4 * 3;

/// The system's allocator, with huge pages for large allocations. For `#[global_allocator]`.
pub struct HugePages;

/// What is really allocated for a large layout: it begins with a huge page, and ends with one if it would
/// fill most of it. Otherwise its end stays on small pages: a huge one would be resident as a whole.
fn pages(layout: Layout) -> Option<Layout> {
    if layout.size() < LARGE {
        return None;
    }
    let rest = layout.size() % HUGE_PAGE;
    let size = if rest < LARGE {
        layout.size()
    } else {
        layout.size().checked_next_multiple_of(HUGE_PAGE)?
    };
    Layout::from_size_align(size, layout.align().max(HUGE_PAGE)).ok()
}

// SAFETY: every call goes to the system's allocator, with a layout that is at least as large and as aligned
// as the one asked for and that depends on nothing but that one, so what was allocated with a layout is freed
// with the same.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match pages(layout) {
            // SAFETY: the caller's promise: the layout is not empty.
            None => unsafe { System.alloc(layout) },
            Some(pages) => {
                // SAFETY: the larger layout is not empty either.
                let start = unsafe { System.alloc(pages) };
                advise(start, pages.size() / HUGE_PAGE * HUGE_PAGE);
                start
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if pages(layout).is_none() {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the caller's promise; what comes back, unless null, has `layout.size()` writable bytes, and no
        // file behind them.
        unsafe {
            let start = self.alloc(layout);
            if !start.is_null() {
                zero(start, layout.size());
            }
            start
        }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise: `start` was allocated with `layout`, that is with `pages(layout)`.
        unsafe { System.dealloc(start, pages(layout).unwrap_or(layout)) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise: `size`, rounded up to the alignment, does not overflow.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (pages(layout), pages(new)) {
            // SAFETY: the caller's promise; both layouts are the system's own.
            (None, None) => unsafe { System.realloc(start, layout, size) },
            (Some(old), Some(new)) if old == new => start,
            // SAFETY: the caller's promise; old and new do not overlap, and have so many bytes.
            _ => unsafe {
                let to = self.alloc(new);
                if !to.is_null() {
                    to.copy_from_nonoverlapping(start, layout.size().min(size));
                    self.dealloc(start, layout);
                }
                to
            },
        }
    }
}

#[cfg(target_os = "linux")]
fn advise(start: *mut u8, len: usize) {
    use nix::libc::{MADV_HUGEPAGE, madvise};
    if !start.is_null() {
        // SAFETY: the pages were just allocated; the advice changes nothing about their contents. That it may
        // be refused does not matter.
        unsafe { madvise(start.cast(), len, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: *mut u8, _: usize) {}

/// A multiple of every size that small pages have.
const SMALL_PAGES: usize = 64 << 10;

/// Sets all numbers to zero and gives their memory back to the system until somebody writes to them. For tables of which
/// few rows are ever written: on small pages, a row brings along no more than its neighbours.
pub fn vacate(numbers: &mut [f32]) {
    let (start, len) = (numbers.as_mut_ptr().cast::<u8>(), size_of_val(numbers));
    #[cfg(target_os = "linux")]
    if let Some(pages) = whole_pages(start, len) {
        use nix::libc::{MADV_NOHUGEPAGE, madvise};
        // SAFETY: the advice changes nothing about the contents of these pages. That it may be refused does not matter.
        unsafe {
            madvise(
                start.wrapping_add(pages.start).cast(),
                pages.len(),
                MADV_NOHUGEPAGE,
            )
        };
    }
    // SAFETY: these bytes are numbers that this function may write; they are the allocator's, so no file is behind them.
    unsafe { zero(start, len) }
}

/// Sets bytes to zero. Whole pages are taken away instead of written: where nobody ever writes, they take neither
/// time nor room.
///
/// # Safety
/// The bytes must be valid for writes, and no file behind them.
unsafe fn zero(start: *mut u8, len: usize) {
    // SAFETY: the caller's promise; all ranges are within the `len` bytes.
    let fill = |part: Range<usize>| unsafe { start.add(part.start).write_bytes(0, part.len()) };
    #[cfg(target_os = "linux")]
    if let Some(pages) = whole_pages(start, len) {
        use nix::libc::{MADV_DONTNEED, madvise};
        // SAFETY: these pages hold nothing but bytes that the caller lets this function write. Where the system takes
        // them away it gives zeros instead; pages locked into memory it leaves as they are, and says so.
        if unsafe { madvise(start.add(pages.start).cast(), pages.len(), MADV_DONTNEED) } == 0 {
            fill(0..pages.start);
            fill(pages.end..len);
            return;
        }
    }
    fill(0..len);
}

/// The part of these bytes that is whole pages.
#[cfg(target_os = "linux")]
fn whole_pages(start: *mut u8, len: usize) -> Option<Range<usize>> {
    let at = start.addr();
    let first = at.next_multiple_of(SMALL_PAGES) - at;
    let end = ((at + len) / SMALL_PAGES * SMALL_PAGES).checked_sub(at)?;
    (first < end).then_some(first..end)
}

/// Asks for the cache lines of `count` numbers from `first` on, which need not be there.
#[inline(always)]
pub fn prefetch<T>(first: *const T, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in lines(first, count) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: whatever the address, nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, count);
}

/// The same for numbers that will be written: no other processor keeps a copy of the lines.
#[inline(always)]
pub fn prefetch_to_write<T>(first: *const T, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in lines(first, count) {
        // SAFETY: whatever the address, nothing is read or written; processors without the instruction do nothing. (The
        // intrinsic would become a plain prefetch, unless the whole program were compiled for newer ones.)
        unsafe {
            std::arch::asm!(
                "prefetchw [{line}]",
                line = in(reg) line,
                options(nostack, preserves_flags, readonly),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, count);
}

/// The cache lines of `count` numbers from `first` on. Not one more: it may be what another thread writes to.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn lines<T>(first: *const T, count: usize) -> impl Iterator<Item = *const i8> {
    const LINE: usize = 64;
    let first = first.cast::<i8>();
    let inside = first.addr() % LINE;
    let start = first.wrapping_sub(inside);
    (0..inside + count * size_of::<T>())
        .step_by(LINE)
        .map(move |at| start.wrapping_add(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn large_layouts_begin_with_a_huge_page_and_small_ones_stay() {
        assert_eq!(pages(layout(LARGE - 1, 64)), None);
        let one = Some(layout(HUGE_PAGE, HUGE_PAGE));
        assert_eq!(pages(layout(LARGE, 64)), one);
        let more = pages(layout(HUGE_PAGE + LARGE, 2 * HUGE_PAGE));
        assert_eq!(more, Some(layout(2 * HUGE_PAGE, 2 * HUGE_PAGE)));
        let less = pages(layout(HUGE_PAGE + 100, 8));
        assert_eq!(less, Some(layout(HUGE_PAGE + 100, HUGE_PAGE)));
        // A size that rounding up would overflow is the system's to refuse.
        assert_eq!(pages(layout(isize::MAX as usize, 1)), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn vacated_numbers_are_zeros_without_memory_until_they_are_written() {
        use nix::libc::mincore;
        /// Bytes in memory, of whole pages.
        fn resident(numbers: &mut [f32]) -> usize {
            const PAGE: usize = 4096;
            let start = numbers.as_ptr().addr().next_multiple_of(PAGE);
            let bytes = (numbers.as_ptr_range().end.addr() - start) / PAGE * PAGE;
            let mut pages = vec![0u8; bytes / PAGE];
            let first = numbers.as_mut_ptr().with_addr(start).cast();
            // SAFETY: the pages are those of `numbers`, and there is a byte for each.
            let failed = unsafe { mincore(first, bytes, pages.as_mut_ptr()) };
            assert_eq!(failed, 0);
            pages.iter().filter(|&&page| page & 1 == 1).count() * PAGE
        }
        let mut numbers = vec![1f32; 8 * HUGE_PAGE / 4];
        assert!(resident(&mut numbers) > 7 * HUGE_PAGE);
        vacate(&mut numbers);
        assert!(resident(&mut numbers) < HUGE_PAGE / 4);
        numbers[HUGE_PAGE] = 5.0;
        assert!(resident(&mut numbers) < HUGE_PAGE / 2);
        assert_eq!(numbers.iter().sum::<f32>(), 5.0);
        // Shorter than a page, and not at its beginning.
        vacate(&mut numbers[HUGE_PAGE - 3..HUGE_PAGE + 3]);
        assert_eq!(numbers.iter().sum::<f32>(), 0.0);
    }

    #[test]
    fn contents_survive_growing_and_shrinking_across_the_limit() {
        let byte = |i: usize| (i % 251) as u8;
        let sizes = [100, LARGE + 7, HUGE_PAGE - 5, 3 * HUGE_PAGE, LARGE, 50];
        // SAFETY: each pointer is used with the layout it was allocated with, within its size.
        unsafe {
            let mut start = HugePages.alloc_zeroed(layout(sizes[0], 8));
            let mut size = sizes[0];
            for (i, &next) in sizes.iter().enumerate() {
                start = HugePages.realloc(start, layout(size, 8), next);
                let kept = if i == 0 { 0 } else { size.min(next) };
                for at in 0..kept {
                    assert_eq!(*start.add(at), byte(at));
                }
                for at in 0..next {
                    *start.add(at) = byte(at);
                }
                size = next;
            }
            HugePages.dealloc(start, layout(size, 8));
        }
    }

    #[test]
    fn zeroed_memory_is_zero_where_others_have_written_before() {
        // With a tail behind the last whole page.
        let layout = layout(HUGE_PAGE + LARGE + 5, 4);
        // SAFETY: each pointer is used with the layout it was allocated with, within its size.
        unsafe {
            for _ in 0..4 {
                let zeros = HugePages.alloc_zeroed(layout);
                assert!((0..layout.size()).all(|at| *zeros.add(at) == 0));
                assert!(zeros.addr().is_multiple_of(HUGE_PAGE));
                zeros.write_bytes(7, layout.size());
                HugePages.dealloc(zeros, layout);
            }
            // And by itself, on bytes that are not zero for sure, at any place.
            let start = HugePages.alloc(layout);
            for from in [0, 1, 4095, SMALL_PAGES + 1] {
                start.write_bytes(7, layout.size());
                let len = layout.size() - from - 3;
                zero(start.add(from), len);
                let bytes = std::slice::from_raw_parts(start, layout.size());
                let zeros = bytes.iter().filter(|&&byte| byte == 0).count();
                assert_eq!(zeros, len, "{from}");
                assert!(bytes[from..from + len].iter().all(|&byte| byte == 0));
            }
            HugePages.dealloc(start, layout);
        }
    }
}
