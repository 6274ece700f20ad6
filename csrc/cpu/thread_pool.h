// A few threads for the length of one call.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace idsel::cpu {

// The calling thread and up to `threads - 1` helpers, which start with the first loop that needs them and end with
// the object. Nothing outlives a call, so that a process may fork between calls and no idle thread competes with
// torch's own.
class ThreadPool {
  public:
    explicit ThreadPool(int threads) : threads_(threads) {}
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return threads_; }
    // Whether a loop has needed the helpers.
    bool started() const { return !helpers_.empty(); }

    // body(begin, end) over [0, count) in chunks of at most `grain`, each taken by whichever thread is free. `body`
    // must not throw, and its results must not depend on the chunk it is in. A helper that comes too late for a chunk
    // is not waited for.
    void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

  private:
    void start_helpers();
    void help();
    void take_chunks();
    bool wait_for_job(uint32_t done);

    int threads_;
    std::vector<std::thread> helpers_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::atomic<uint32_t> job_{0};   // counts loops
    std::atomic<bool> open_{false};  // whether helpers may still join the current one
    std::atomic<int> joined_{0};     // helpers that have, or are about to find out that they may not
    std::atomic<bool> closing_{false};

    const std::function<void(int64_t, int64_t)>* body_ = nullptr;
    int64_t count_ = 0;
    int64_t grain_ = 1;
    std::atomic<int64_t> next_{0};
};

}  // namespace idsel::cpu
