// Helper threads that live for one call of the library.
//
// Why not OpenMP: its barriers wait for every thread of the team, and spin, so a busy neighbour on a
// shared machine makes two threads several times slower than one. Here the caller works through the
// chunks itself and at the end waits only for helpers that have a chunk in hand; one that was never
// scheduled costs nothing. No pool outlives the call: no state, nothing to break after a fork, no
// second OpenMP runtime beside torch's. Starting a helper takes about 20 microseconds.
#pragma once

#include <stdint.h>

#ifndef GSA_NO_THREADS
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#endif

namespace gsa {

#ifdef GSA_NO_THREADS
class Crew {
 public:
  explicit Crew(int32_t) {}
  template <class Body>
  void run(int32_t count, const Body& body) {
    for (int32_t i = 0; i < count; ++i) body(i);
  }
};
#else

class Crew {
 public:
  explicit Crew(int32_t threads) {
    if (threads <= 1) return;
    shared_ = new (std::nothrow) Shared;
    if (!shared_) return;
    for (int32_t i = 1; i < threads; ++i) {
      shared_->owners.fetch_add(1);
      pthread_t thread;
      if (pthread_create(&thread, nullptr, helper_main, shared_) == 0) {
        pthread_detach(thread);
      } else {  // the caller alone is enough
        shared_->owners.fetch_sub(1);
        break;
      }
    }
  }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  ~Crew() {
    if (!shared_) return;
    {
      std::lock_guard<std::mutex> lock(shared_->mutex);
      shared_->over = true;
    }
    shared_->work.notify_all();
    leave(shared_);
  }

  // Calls body(i) for i in [0, count). Chunks go to whoever is free, so each must write to places of
  // its own; then the result does not depend on the schedule.
  template <class Body>
  void run(int32_t count, const Body& body) {
    if (!shared_ || count <= 1) {
      for (int32_t i = 0; i < count; ++i) body(i);
      return;
    }
    Job job;
    job.count = count;
    job.body = &body;
    job.call = [](const void* b, int32_t i) { (*(const Body*)b)(i); };
    {
      std::lock_guard<std::mutex> lock(shared_->mutex);
      shared_->job = &job;
      ++shared_->generation;
    }
    shared_->work.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(shared_->mutex);
    shared_->job = nullptr;  // late helpers find nothing
    shared_->idle.wait(lock, [&] { return shared_->active == 0; });
  }

 private:
  struct Job {
    std::atomic<int32_t> next{0};
    int32_t count;
    const void* body;
    void (*call)(const void*, int32_t);
    void work() {
      for (int32_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) call(body, i);
    }
  };
  struct Shared {
    std::mutex mutex;
    std::condition_variable work, idle;
    Job* job = nullptr;
    uint64_t generation = 0;
    int32_t active = 0;
    bool over = false;
    std::atomic<int32_t> owners{1};
  };

  static void leave(Shared* shared) {
    if (shared->owners.fetch_sub(1) == 1) delete shared;
  }

  static void* helper_main(void* argument) {
    Shared* shared = (Shared*)argument;
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(shared->mutex);
    for (;;) {
      shared->work.wait(lock, [&] {
        return shared->over || (shared->job && shared->generation != seen);
      });
      if (shared->over) break;
      seen = shared->generation;
      Job* job = shared->job;
      ++shared->active;
      lock.unlock();
      job->work();
      lock.lock();
      if (--shared->active == 0) shared->idle.notify_all();
    }
    lock.unlock();
    leave(shared);
    return nullptr;
  }

  Shared* shared_ = nullptr;
};
#endif

}  // namespace gsa
