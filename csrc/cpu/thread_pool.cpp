#include "cpu/thread_pool.h"

#include <algorithm>
#include <system_error>

#ifdef __linux__
#include <sched.h>
#endif

namespace idsel::cpu {
namespace {

// Loops follow one another within microseconds, a wake-up takes tens: look a little while before going to sleep.
constexpr int kLooks = 4000;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#ifdef __linux__

// Of the calling thread.
int core() { return sched_getcpu(); }

// Keeps the calling thread off a core, if it may use others. Linux often lets a new thread share the core of the one
// that started it, though another is idle, and then each keeps the other waiting for milliseconds.
void avoid_core(int core) {
    cpu_set_t cores;
    if (core < 0 || core >= CPU_SETSIZE || sched_getaffinity(0, sizeof cores, &cores) != 0) return;
    CPU_CLR(static_cast<size_t>(core), &cores);
    if (CPU_COUNT(&cores) > 0) sched_setaffinity(0, sizeof cores, &cores);
}

#else

int core() { return -1; }
void avoid_core(int) {}

#endif

}  // namespace

ThreadPool::~ThreadPool() {
    if (helpers_.empty()) return;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        closing_.store(true);
        job_.fetch_add(1);
    }
    changed_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
}

void ThreadPool::start_helpers() {
    if (!helpers_.empty()) return;
    helpers_.reserve(static_cast<size_t>(threads_ - 1));
    const int taken = core();
    while (static_cast<int>(helpers_.size()) < threads_ - 1) {
        try {
            helpers_.emplace_back([this, taken] {
                avoid_core(taken);
                help();
            });
        } catch (const std::system_error&) {
            break;  // the system gives no more threads: the work is done by fewer
        }
    }
    if (helpers_.empty()) threads_ = 1;
}

bool ThreadPool::wait_for_job(uint32_t done) {
    for (int look = 0; look < kLooks && job_.load(std::memory_order_acquire) == done; ++look) pause();
    if (job_.load(std::memory_order_acquire) == done) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return job_.load() != done; });
    }
    return !closing_.load();
}

void ThreadPool::help() {
    // Helpers start before the first job is posted, or while it is: `0` is the count before it.
    uint32_t done = 0;
    while (wait_for_job(done)) {
        done = job_.load(std::memory_order_acquire);
        // Either this sees that the loop is closed, or who closes it sees this helper (both sequentially consistent).
        joined_.fetch_add(1);
        if (open_.load()) take_chunks();
        joined_.fetch_sub(1);
    }
}

void ThreadPool::take_chunks() {
    for (int64_t begin; (begin = next_.fetch_add(grain_)) < count_;) (*body_)(begin, std::min(begin + grain_, count_));
}

void ThreadPool::parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    if (threads_ > 1 && count > grain) start_helpers();
    if (threads_ == 1 || count <= grain) {
        if (count > 0) body(0, count);
        return;
    }
    body_ = &body;
    count_ = count;
    grain_ = grain;
    next_.store(0);
    open_.store(true);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        job_.fetch_add(1, std::memory_order_release);
    }
    changed_.notify_all();
    take_chunks();
    open_.store(false);
    for (int look = 0; joined_.load() != 0; ++look) {
        if (look < kLooks) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

}  // namespace idsel::cpu
