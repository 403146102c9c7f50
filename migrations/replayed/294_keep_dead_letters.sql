-- Step: messages that cannot be used are kept whole, for a person. Returns what becomes of each.
create or replace function clerk_sync.keep_dead_letters(
    dead_letters clerk_sync.dead_letter_v1[], messages clerk_sync.message_v1[], repeated integer[])
  returns clerk_sync.outcome[]
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
begin
  insert into clerk_sync.dead_letters (message_id, body_hash, event_type, reason, headers, body)
    select m.message_id, m.body_hash, m.event_type, d.reason, d.headers, d.body
      from unnest(dead_letters) d
      join unnest(messages) m on m.n = d.n
    on conflict do nothing;
  -- Of one that was refused in another way before.
  update clerk_sync.receipts r set outcome = 'dead_letter', reason = d.reason
    from unnest(dead_letters) d
    join unnest(messages) m on m.n = d.n
   where m.n = any (repeated) and r.message_id = m.message_id and r.body_hash = m.body_hash and r.outcome = 'pending';
  return array(select row(n, 'dead_letter', reason)::clerk_sync.outcome from unnest(dead_letters));
end
$$;

revoke all on function clerk_sync.keep_dead_letters(clerk_sync.dead_letter_v1[], clerk_sync.message_v1[], integer[]) from public, anon, authenticated, service_role;
