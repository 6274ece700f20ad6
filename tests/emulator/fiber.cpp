// Changing stacks takes nanoseconds in assembly and most of a microsecond with ucontext, which asks the kernel.
#include "fiber.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace idsel::emulator {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 32 * 1024;
#endif

#if defined(__x86_64__)
// Saves what a call must preserve on the present stack, and takes it from the other.
extern "C" void idsel_emulator_switch(void** save, void* load);
asm(R"(
.text
.globl idsel_emulator_switch
.hidden idsel_emulator_switch
.type idsel_emulator_switch, @function
idsel_emulator_switch:
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
.size idsel_emulator_switch, .-idsel_emulator_switch
)");
#endif

}  // namespace

struct Fiber::State {
    std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
    Body body = nullptr;
    void* argument = nullptr;
#if defined(__x86_64__)
    void* inside = nullptr;
    void* outside = nullptr;
#else
    ucontext_t inside, outside;
#endif
#if defined(__SANITIZE_ADDRESS__)
    void* fake_inside = nullptr;
    void* fake_outside = nullptr;
    const void* outside_stack = nullptr;
    size_t outside_bytes = 0;
#endif

    void to_inside() {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(&fake_outside, stack.get(), kStackBytes);
#endif
#if defined(__x86_64__)
        idsel_emulator_switch(&outside, inside);
#else
        swapcontext(&outside, &inside);
#endif
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake_outside, nullptr, nullptr);
#endif
    }

    void arrived_inside([[maybe_unused]] bool first) {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(first ? nullptr : fake_inside, &outside_stack, &outside_bytes);
#endif
    }

    void to_outside([[maybe_unused]] bool ends) {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(ends ? nullptr : &fake_inside, outside_stack, outside_bytes);
#endif
#if defined(__x86_64__)
        idsel_emulator_switch(&inside, outside);
#else
        swapcontext(&inside, &outside);
#endif
    }
};

namespace {
thread_local void* entering = nullptr;
}

Fiber::Fiber() : state_(new State) {}
Fiber::~Fiber() = default;

void Fiber::enter() {
    auto* state = static_cast<State*>(entering);
    state->arrived_inside(true);
    state->body(state->argument);
    state->to_outside(true);
    std::abort();  // nobody resumes a fiber that has ended
}

void Fiber::start(Body body, void* argument) {
    state_->body = body;
    state_->argument = argument;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(state_->stack.get(), kStackBytes);
#endif
#if defined(__x86_64__)
    auto top = reinterpret_cast<std::uintptr_t>(state_->stack.get() + kStackBytes) & ~std::uintptr_t{15};
    auto** at = reinterpret_cast<void**>(top);
    *--at = nullptr;  // where enter() would return to, which it does not
    *--at = reinterpret_cast<void*>(&Fiber::enter);
    for (int registers = 0; registers < 6; ++registers) *--at = nullptr;
    state_->inside = at;
#else
    getcontext(&state_->inside);
    state_->inside.uc_stack.ss_sp = state_->stack.get();
    state_->inside.uc_stack.ss_size = kStackBytes;
    state_->inside.uc_link = nullptr;
    makecontext(&state_->inside, &Fiber::enter, 0);
#endif
}

void Fiber::resume() {
    entering = state_.get();
    state_->to_inside();
}

void Fiber::pause() {
    state_->to_outside(false);
    state_->arrived_inside(false);
}

}  // namespace idsel::emulator
