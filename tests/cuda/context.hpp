// A place in a program to come back to, with a stack of its own. Tiny runs of training switch millions of
// times, and ucontext makes two system calls each time; hence the few lines of assembler where we have them.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)

// Keeps what the callee owes its caller (System V ABI) on the stack that it leaves.
asm(R"(
    .text
    .p2align 4
    .type chandler_switch, @function
chandler_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size chandler_switch, . - chandler_switch
)");
extern "C" void chandler_switch(void** from, void* to);

struct Context {
    void* stack_pointer = nullptr;

    /// The first switch here calls `entry`, which must not return. `top` is the stack's upper end.
    void prepare(unsigned char* /*bottom*/, unsigned char* top, void (*entry)()) {
        auto* words = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15}) - 8;
        for (int i = 0; i < 8; ++i) {
            words[i] = 0;
        }
        words[6] = reinterpret_cast<uintptr_t>(entry);
        stack_pointer = words;
    }
    static void change(Context& from, Context& to) { chandler_switch(&from.stack_pointer, to.stack_pointer); }
};

#else

#include <ucontext.h>

struct Context {
    ucontext_t state;

    void prepare(unsigned char* bottom, unsigned char* top, void (*entry)()) {
        getcontext(&state);
        state.uc_stack.ss_sp = bottom;
        state.uc_stack.ss_size = static_cast<size_t>(top - bottom);
        state.uc_link = nullptr;
        makecontext(&state, entry, 0);
    }
    static void change(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
};

#endif
