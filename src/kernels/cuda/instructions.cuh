// Instructions that CUDA C++ has no name for, as functions: tensor cores and copies into shared memory
// that go on in the background. For sm_80 and newer. Sources: PTX ISA, "mma.sync", "ldmatrix",
// "cp.async". tests/cuda/warp.hpp gives the same functions in plain C++.
//
// Fragments, for lane = 4 * g + t of a warp (g 0..7, t 0..3); two bf16 in a register, the first below:
//   a (16 x 16): a[0] = row g, columns 2t, 2t+1; a[1] = row g + 8; a[2], a[3] = the same 8 columns right
//   b (16 x 8):  b[0] = rows 2t, 2t+1 of column g; b[1] = rows 2t + 8, 2t + 9
//   d (16 x 8):  d[0], d[1] = row g, columns 2t, 2t+1; d[2], d[3] = row g + 8
#pragma once

/// An address within shared memory, as instructions on it want it.
__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

/// d += a b, in f32. All lanes of a warp call it together.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4],
                                                  const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four matrices of 8 rows of 8 bf16 from shared memory. Lane 8 m + i names row i of matrix m, 16 bytes
/// aligned to 16; lane 4 g + t gets elements 2t, 2t+1 of row g of matrix m in r[m]. All lanes of a warp
/// call it together.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
/// The same of the matrices transposed: lane 4 g + t gets element g of rows 2t and 2t+1.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
/// Two matrices: lanes 0..15 name their rows (the other lanes' rows are not looked at).
__device__ __forceinline__ void ldmatrix_x2(unsigned (&r)[2], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
/// Two matrices transposed.
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&r)[2], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

/// Starts to copy 16 bytes, both ends aligned to 16, past the first-level cache; zeros where not `valid`
/// (then `global` is not read). They are there for this thread after `cp_async_wait`, for others after
/// a barrier behind that.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)),
                   "r"(valid ? 16 : 0)
                 : "memory");
}
/// Closes a group of this thread's copies; an empty one counts too.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most the last N groups are still under way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
