-- Step: which messages came before, and which must not be applied at all: of another Clerk instance, with an id that came with another
-- body, or from a clock that is ahead. The instance is pinned by the first message that names one, where nothing else pinned it.
create or replace function clerk_sync.check_messages(
    messages clerk_sync.message_v1[], changes clerk_sync.change_v1[], deletions clerk_sync.deletion_v1[],
    dead_letters clerk_sync.dead_letter_v1[], check_instance boolean, context clerk_sync.context,
    out refused clerk_sync.outcome[], out repeated integer[])
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  pinned pg_catalog.text;
begin
  if check_instance then
    pinned := context.instance_id;
    if pinned is null then
      insert into clerk_sync.instance (instance_id, pinned_by)
        select m.instance_id, 'webhook' from unnest(messages) m where m.instance_id is not null order by m.n limit 1
        on conflict do nothing;
      pinned := (select instance_id from clerk_sync.instance);
    end if;
  end if;
  if cardinality(messages) = 0 then
    return;
  end if;
  with message as (
    select m.n, m.instance_id <> pinned as is_foreign, context.from_webhook and m.event_at > context.ahead_limit
             and (exists (select from unnest(changes) where n = m.n) or exists (select from unnest(deletions) where n = m.n)) as is_ahead,
           r.body_hash is not null or m.first_hash is not null as is_repeated,
           m.body_hash <> coalesce(r.body_hash, m.first_hash) and m.n <> all (array(select n from unnest(dead_letters))) as is_reused
      from unnest(messages) m
      left join lateral (select body_hash from clerk_sync.receipts where message_id = m.message_id offset 0) r on true
  )
  select array_agg(row(n, case when is_foreign then 'foreign' when is_reused then 'reused' else 'ahead' end,
                       case when is_foreign then pinned end)::clerk_sync.outcome) filter (where is_foreign or is_reused or is_ahead),
         array_agg(n) filter (where is_repeated)
    into refused, repeated from message;
end
$$;

revoke all on function clerk_sync.check_messages(clerk_sync.message_v1[], clerk_sync.change_v1[], clerk_sync.deletion_v1[],
  clerk_sync.dead_letter_v1[], boolean, clerk_sync.context) from public, anon, authenticated, service_role;
