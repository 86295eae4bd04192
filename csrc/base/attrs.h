/* Marks for compiler and reader: ownership, locks, results not to ignore.
 *
 * No code here. Clang checks the lock marks (-Wthread-safety); other
 * compilers see nothing.
 */
#ifndef FM_BASE_ATTRS_H
#define FM_BASE_ATTRS_H

#if defined(__clang__)
#define FM_TSA(x) __attribute__((x))
#else
#define FM_TSA(x)
#endif

/* A field's guard, for readers alone: the lock to hold, ... */
#define FM_GUARDED_BY(lock)
/* ... never changed after _new, ... */
#define FM_IMMUTABLE
/* ... or touched by one thread only. */
#define FM_OWNED_BY_THREAD(thread)

#define FM_CAPABILITY FM_TSA(capability("mutex"))
#define FM_ACQUIRES(m) FM_TSA(acquire_capability(m))
#define FM_RELEASES(m) FM_TSA(release_capability(m))
#define FM_REQUIRES(m) FM_TSA(requires_capability(m))
#define FM_NO_LOCK_CHECK FM_TSA(no_thread_safety_analysis)

#define FM_MUST_CHECK __attribute__((warn_unused_result))
#define FM_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define FM_LIKELY(x) __builtin_expect(!!(x), 1)
#define FM_UNLIKELY(x) __builtin_expect(!!(x), 0)

#endif
