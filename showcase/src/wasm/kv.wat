;; A key-value store: a hash table with chains, and an allocator with free lists that grows the memory if necessary.
;;
;; Its memory contains the table, the entries and the free lists. Its mutable globals contain the end of the heap and the
;; number of requests. The globals are exported, so that the host can save them with the memory.
;;
;; Memory:
;;     16      number of entries
;;     20      number of buckets - 1
;;     24      address of the buckets, each the address of an entry or 0
;;     64      32 free lists; list c has blocks of 2^c bytes, linked by their first word
;;   1024      the heap, up to $top
;;
;; An entry: 0 next, 4 length of the value (a multiple of 8), 8 key, 16 value.
(module
  (memory (export "memory") 1 4096)
  (global $top (export "top") (mut i32) (i32.const 1024))
  (global $requests (export "requests") (mut i64) (i64.const 0))

  ;; ---- numbers

  ;; The finalizer of splitmix64.
  (func $mix (param $x i64) (result i64)
    (local.set $x (i64.mul (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 30)))
                           (i64.const 0xbf58476d1ce4e5b9)))
    (local.set $x (i64.mul (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 27)))
                           (i64.const 0x94d049bb133111eb)))
    (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 31))))

  ;; Writes `bytes` bytes that depend on `seed`. Their number is a multiple of 8.
  (func $fill (param $at i32) (param $bytes i32) (param $seed i64)
    (local $end i32)
    (local.set $end (i32.add (local.get $at) (local.get $bytes)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (local.set $seed (i64.add (local.get $seed) (i64.const 0x9e3779b97f4a7c15)))
      (i64.store (local.get $at) (call $mix (local.get $seed)))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br $next))))

  (func $checksum (param $at i32) (param $bytes i32) (result i64)
    (local $end i32) (local $sum i64)
    (local.set $end (i32.add (local.get $at) (local.get $bytes)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (local.set $sum (i64.xor (i64.rotl (local.get $sum) (i64.const 7)) (i64.load (local.get $at))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br $next)))
    (local.get $sum))

  ;; ---- the allocator

  ;; Returns the free list for `bytes` bytes: the smallest c, but at least 4, with 2^c >= bytes.
  (func $class (param $bytes i32) (result i32)
    (if (result i32) (i32.le_u (local.get $bytes) (i32.const 16))
      (then (i32.const 4))
      (else (i32.sub (i32.const 32) (i32.clz (i32.sub (local.get $bytes) (i32.const 1)))))))

  (func $list (param $class i32) (result i32)
    (i32.add (i32.const 64) (i32.shl (local.get $class) (i32.const 2))))

  ;; Allocates a block. Traps if the memory cannot grow. A block that was used before still contains its old bytes.
  (func $alloc (param $bytes i32) (result i32)
    (local $list i32) (local $at i32) (local $end i64) (local $missing i64)
    (local.set $list (call $list (call $class (local.get $bytes))))
    (local.set $at (i32.load (local.get $list)))
    (if (local.get $at)
      (then
        (i32.store (local.get $list) (i32.load (local.get $at)))
        (return (local.get $at))))
    (local.set $at (global.get $top))
    (local.set $end (i64.add (i64.extend_i32_u (local.get $at))
                             (i64.shl (i64.const 1) (i64.extend_i32_u (call $class (local.get $bytes))))))
    (local.set $missing (i64.sub (local.get $end)
                                 (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16))))
    (if (i64.gt_s (local.get $missing) (i64.const 0))
      (then
        (if (i32.eq (i32.const -1)
                    (memory.grow (i32.wrap_i64 (i64.shr_u (i64.add (local.get $missing) (i64.const 0xffff))
                                                          (i64.const 16)))))
          (then (unreachable)))))
    (global.set $top (i32.wrap_i64 (local.get $end)))
    (local.get $at))

  (func $free (param $at i32) (param $bytes i32)
    (local $list i32)
    (local.set $list (call $list (call $class (local.get $bytes))))
    (i32.store (local.get $at) (i32.load (local.get $list)))
    (i32.store (local.get $list) (local.get $at)))

  ;; ---- the table

  ;; Returns the address of the word that contains the address of the key's entry. If there is no entry, the word is 0, and
  ;; a new entry is linked there.
  (func $find (param $key i64) (result i32)
    (local $link i32) (local $entry i32)
    (local.set $link
      (i32.add (i32.load (i32.const 24))
               (i32.shl (i32.and (i32.wrap_i64 (call $mix (local.get $key))) (i32.load (i32.const 20)))
                        (i32.const 2))))
    (block $done (loop $next
      (local.set $entry (i32.load (local.get $link)))
      (br_if $done (i32.eqz (local.get $entry)))
      (br_if $done (i64.eq (i64.load offset=8 (local.get $entry)) (local.get $key)))
      (local.set $link (local.get $entry))
      (br $next)))
    (local.get $link))

  ;; Sets the value of the key: `length` bytes, rounded up to a multiple of 8, which depend on `seed`.
  (func $put (export "put") (param $key i64) (param $length i32) (param $seed i64)
    (local $link i32) (local $entry i32)
    (local.set $length (i32.and (i32.add (local.get $length) (i32.const 7)) (i32.const -8)))
    (local.set $link (call $find (local.get $key)))
    (local.set $entry (i32.load (local.get $link)))
    (if (local.get $entry)
      (then
        (if (i32.ne (i32.load offset=4 (local.get $entry)) (local.get $length))
          (then
            (drop (call $delete (local.get $key)))
            (local.set $link (call $find (local.get $key)))
            (local.set $entry (i32.const 0))))))
    (if (i32.eqz (local.get $entry))
      (then
        (local.set $entry (call $alloc (i32.add (local.get $length) (i32.const 16))))
        (i32.store (local.get $entry) (i32.const 0))
        (i32.store offset=4 (local.get $entry) (local.get $length))
        (i64.store offset=8 (local.get $entry) (local.get $key))
        (i32.store (local.get $link) (local.get $entry))
        (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))))
    (call $fill (i32.add (local.get $entry) (i32.const 16)) (local.get $length) (local.get $seed)))

  ;; Returns a checksum of the key's value, or 0 if it has no value.
  (func $get (export "get") (param $key i64) (result i64)
    (local $entry i32)
    (local.set $entry (i32.load (call $find (local.get $key))))
    (if (result i64) (local.get $entry)
      (then (call $checksum (i32.add (local.get $entry) (i32.const 16)) (i32.load offset=4 (local.get $entry))))
      (else (i64.const 0))))

  ;; Deletes the key's entry. Returns whether there was one.
  (func $delete (export "delete") (param $key i64) (result i32)
    (local $link i32) (local $entry i32)
    (local.set $link (call $find (local.get $key)))
    (local.set $entry (i32.load (local.get $link)))
    (if (i32.eqz (local.get $entry)) (then (return (i32.const 0))))
    (i32.store (local.get $link) (i32.load (local.get $entry)))
    (call $free (local.get $entry) (i32.add (i32.load offset=4 (local.get $entry)) (i32.const 16)))
    (i32.store (i32.const 16) (i32.sub (i32.load (i32.const 16)) (i32.const 1)))
    (i32.const 1))

  (func (export "entries") (result i32) (i32.load (i32.const 16)))

  ;; ---- functions for the host

  ;; Returns a random length of a value: 64 to 568 bytes.
  (func $length (param $random i64) (result i32)
    (i32.add (i32.const 64) (i32.and (i32.wrap_i64 (local.get $random)) (i32.const 0x1f8))))

  ;; Makes a table with the keys 0 to `count` - 1. It must be called once, before all other functions.
  (func (export "init") (param $count i32)
    (local $buckets i32) (local $key i64)
    (local.set $buckets (i32.shl (i32.const 1)
                                 (i32.sub (i32.const 32) (i32.clz (local.get $count)))))
    (i32.store (i32.const 20) (i32.sub (local.get $buckets) (i32.const 1)))
    (i32.store (i32.const 24) (call $alloc (i32.shl (local.get $buckets) (i32.const 2))))
    (block $done (loop $next
      (br_if $done (i64.ge_u (local.get $key) (i64.extend_i32_u (local.get $count))))
      (call $put (local.get $key) (call $length (call $mix (local.get $key))) (local.get $key))
      (local.set $key (i64.add (local.get $key) (i64.const 1)))
      (br $next))))

  ;; Does `operations` operations on keys that depend on `seed`. `init` made entries for half of these keys. Of 16 operations,
  ;; 8 get a value, 5 put one, 2 delete one, and 1 fills 4 KiB of scratch memory and frees it. Returns a checksum of all
  ;; bytes that were read.
  (func $request (export "request") (param $seed i64) (param $operations i32) (result i64)
    (local $random i64) (local $key i64) (local $what i32) (local $sum i64) (local $scratch i32)
    (global.set $requests (i64.add (global.get $requests) (i64.const 1)))
    (block $done (loop $next
      (br_if $done (i32.eqz (local.get $operations)))
      (local.set $operations (i32.sub (local.get $operations) (i32.const 1)))
      (local.set $seed (i64.add (local.get $seed) (i64.const 0x9e3779b97f4a7c15)))
      (local.set $random (call $mix (local.get $seed)))
      (local.set $key (i64.and (i64.shr_u (local.get $random) (i64.const 8))
                               (i64.extend_i32_u (i32.load (i32.const 20)))))
      (local.set $what (i32.and (i32.wrap_i64 (local.get $random)) (i32.const 15)))
      (if (i32.lt_u (local.get $what) (i32.const 8))
        (then (local.set $sum (i64.add (i64.rotl (local.get $sum) (i64.const 1)) (call $get (local.get $key)))))
        (else (if (i32.lt_u (local.get $what) (i32.const 13))
          (then (call $put (local.get $key)
                           (call $length (i64.shr_u (local.get $random) (i64.const 40)))
                           (local.get $random)))
          (else (if (i32.lt_u (local.get $what) (i32.const 15))
            (then (local.set $sum (i64.add (i64.rotl (local.get $sum) (i64.const 1))
                                           (i64.extend_i32_u (call $delete (local.get $key))))))
            (else
              (local.set $scratch (call $alloc (i32.const 4096)))
              (call $fill (local.get $scratch) (i32.const 4096) (local.get $random))
              (local.set $sum (i64.xor (local.get $sum)
                                       (call $checksum (local.get $scratch) (i32.const 4096))))
              (call $free (local.get $scratch) (i32.const 4096))))))))
      (br $next)))
    (i64.add (local.get $sum) (i64.extend_i32_u (i32.load (i32.const 16)))))

  ;; Does the same as `request`, and then traps.
  (func (export "crash") (param $seed i64) (param $operations i32)
    (drop (call $request (local.get $seed) (local.get $operations)))
    (unreachable))

  (func (export "size") (result i32) (memory.size))
  (func (export "grow") (param $pages i32) (result i32) (memory.grow (local.get $pages)))
  (func (export "peek") (param $at i32) (result i32) (i32.load8_u (local.get $at)))
  (func (export "poke") (param $at i32) (param $byte i32) (i32.store8 (local.get $at) (local.get $byte))))
