#include "cpu/team.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

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

}  // namespace

// Helper threads, which belong to one team at a time.
class Crew {
  public:
    explicit Crew(int helpers) : wanted_(helpers) {
        helpers_.reserve(static_cast<size_t>(helpers));
        try {
            while (static_cast<int>(helpers_.size()) < helpers) helpers_.emplace_back([this] { help(); });
        } catch (const std::system_error&) {
            // The system gives no more: the work is done by fewer.
        }
    }
    ~Crew() {
        closing_.store(true);
        wake();
        for (std::thread& helper : helpers_) helper.join();
    }
    Crew(const Crew&) = delete;
    Crew& operator=(const Crew&) = delete;

    int wanted() const { return wanted_; }

    void run(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
        body_ = &body;
        count_ = count;
        grain_ = grain;
        std::fegetenv(&rounding_);
        next_.store(0);
        open_.store(true);
        resting_.store(false);
        wake();
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

    // No loop follows soon: helpers go to sleep.
    void rest() { resting_.store(true); }

  private:
    void wake() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            job_.fetch_add(1);
        }
        changed_.notify_all();
    }

    bool wait_for_job(uint32_t done) {
        for (int look = 0; look < kLooks && !resting_.load() && job_.load() == done; ++look) pause();
        if (job_.load() == done) {
            std::unique_lock<std::mutex> lock(mutex_);
            changed_.wait(lock, [&] { return job_.load() != done; });
        }
        return !closing_.load();
    }

    void help() {
        uint32_t done = 0;
        while (wait_for_job(done)) {
            done = job_.load();
            // Either this sees that the loop is closed, or who closes it sees this helper: both are sequentially
            // consistent.
            joined_.fetch_add(1);
            if (open_.load()) {
                // The caller may have changed how it rounds, or flushes small numbers, since this thread began.
                std::fesetenv(&rounding_);
                take_chunks();
            }
            joined_.fetch_sub(1);
        }
    }

    void take_chunks() {
        for (int64_t begin; (begin = next_.fetch_add(grain_)) < count_;) {
            (*body_)(begin, std::min(begin + grain_, count_));
        }
    }

    const int wanted_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::atomic<uint32_t> job_{0};      // counts loops
    std::atomic<bool> open_{false};     // whether helpers may still join the current one
    std::atomic<int> joined_{0};        // helpers that have, or are about to find out that they may not
    std::atomic<bool> resting_{false};  // whether looking for the next loop is in vain
    std::atomic<bool> closing_{false};

    const std::function<void(int64_t, int64_t)>* body_ = nullptr;
    int64_t count_ = 0;
    int64_t grain_ = 1;
    std::fenv_t rounding_{};
    std::atomic<int64_t> next_{0};
    std::vector<std::thread> helpers_;
};

namespace {

// Crews between calls: starting threads takes as long as a short call. Calls at the same time have crews of their own.
class Idle {
  public:
    static Idle& crews() {
        static Idle* const idle = new Idle;  // never destroyed: a call may outlive main()
        return *idle;
    }

    std::unique_ptr<Crew> call(int helpers) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (auto crew = idle_.begin(); crew != idle_.end(); ++crew) {
                if ((*crew)->wanted() != helpers) continue;
                std::unique_ptr<Crew> found = std::move(*crew);
                idle_.erase(crew);
                return found;
            }
        }
        return std::make_unique<Crew>(helpers);
    }

    void dismiss(std::unique_ptr<Crew> crew) {
        crew->rest();
        std::unique_ptr<Crew> oldest;  // ends, if there are too many, without the lock
        const std::lock_guard<std::mutex> lock(mutex_);
        if (idle_.size() == kMost) {
            oldest = std::move(idle_.front());
            idle_.erase(idle_.begin());
        }
        idle_.push_back(std::move(crew));
    }

  private:
    static constexpr size_t kMost = 4;

    Idle() {
        idle_.reserve(kMost);
        stay_loaded();
        pthread_atfork([] { crews().mutex_.lock(); }, [] { crews().mutex_.unlock(); }, [] { crews().forget(); });
    }

    // Helpers run code of the object that this is linked into, which dlclose() must therefore leave in memory.
    static void stay_loaded() {
        Dl_info here;
        if (dladdr(reinterpret_cast<const void*>(&stay_loaded), &here) != 0) {
            static_cast<void>(dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE));
        }
    }

    // In the child of a fork, which has only the thread that forked: others' helpers can be neither used nor ended.
    void forget() {
        for (std::unique_ptr<Crew>& crew : idle_) static_cast<void>(crew.release());
        idle_.clear();
        mutex_.unlock();
    }

    std::mutex mutex_;
    std::vector<std::unique_ptr<Crew>> idle_;  // the one dismissed last at the end
};

// Before any call, so that a fork cannot meet a half-made one.
[[maybe_unused]] Idle& made_at_load = Idle::crews();

}  // namespace

Team::Team(int threads) : threads_(threads) {}

Team::~Team() {
    if (crew_) Idle::crews().dismiss(std::move(crew_));
}

void Team::parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    if (threads_ == 1 || count <= grain) {
        if (count > 0) body(0, count);
        return;
    }
    if (!crew_) crew_ = Idle::crews().call(threads_ - 1);
    crew_->run(count, grain, body);
}

}  // namespace idsel::cpu
