-- Step: takes the lock, and reads what all later steps need.
--
-- The times that the rules use, in ms, are constants of the steps that need them:
--   margin   5 min    upper bound of clock differences and delays between Clerk and us (R2, R4, R7)
--   skew     2.1 s    clock difference between Clerk's servers, and the time to send an event
--   soon     5 s      events of one object so close together may be in the wrong order (R9)
--   hour     1 h      after this a contradiction is believed (R2),
--   day      24 h       and after this if it gives more access than what it contradicts allows
create or replace function clerk_sync.begin_write(
    source text, mode text, fence bigint, lock_wait_ms integer, changes clerk_sync.change_v1[], deletions clerk_sync.deletion_v1[])
  returns clerk_sync.context
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  context clerk_sync.context;
begin
  -- With a snapshot older than the lock, the steps would not see what the writer before us did.
  if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'clerk_sync.apply needs the isolation level read committed';
  end if;
  -- Over all replicas: no deadlock, and no member added while the organization is deleted. Every statement from here on sees what was
  -- committed before the lock was granted.
  perform clerk_sync.lock_writer();
  if fence is not null then
    perform clerk_sync.check_fence(fence);
  end if;
  if lock_wait_ms is not null then
    perform pg_catalog.set_config('lock_timeout', lock_wait_ms::pg_catalog.text, true);
  end if;
  context.from_webhook := source = 'webhook';
  context.from_list := source = 'list';
  context.from_read := source in ('read', 'undelete', 'development');
  context.undelete := source = 'undelete';
  context.is_believed := source = 'development';
  context.in_full := mode is null;
  context.ahead_limit := (extract(epoch from pg_catalog.now()) * 1000)::bigint + 300000;
  -- One statement for all of them: each costs some 15 µs, whatever it finds.
  select max(started_at) filter (where kind = 'user'), max(started_at) filter (where kind = 'organization'),
         max(started_at) filter (where kind = 'membership'),
         exists (select from clerk_sync.denials) or exists (select from clerk_sync.pending_reads where reason = 'refused'),
         context.from_webhook and exists (select from clerk_sync.listings), (select instance_id from clerk_sync.instance)
    into context.user_watermark, context.organization_watermark, context.membership_watermark, context.has_refused, context.is_listing,
         context.instance_id
    from clerk_sync.pass_watermarks where context.from_webhook;   -- R7 is about webhooks alone
  context.checks_all := context.has_refused or not context.in_full;
  if context.is_listing then
    select max(started_at) filter (where kind = 'user'), max(started_at) filter (where kind = 'organization'),
           max(started_at) filter (where kind = 'membership'),
           max(listed_to) filter (where kind = 'user'), max(listed_to) filter (where kind = 'organization'),
           max(listed_to) filter (where kind = 'membership')
      into context.user_listing, context.organization_listing, context.membership_listing,
           context.users_listed_to, context.organizations_listed_to, context.memberships_listed_to
      from clerk_sync.listings;
  end if;
  if context.from_webhook then
    return context;
  end if;
  if context.is_believed and not exists (select from clerk_sync.instance where environment = 'development') then
    raise exception 'only what is read of a development instance is believed at once' using errcode = 'CS005';
  end if;
  if exists (select from unnest(changes) where observed_at > context.ahead_limit)
     or exists (select from unnest(deletions) where observed_at > context.ahead_limit) then
    raise exception 'a response of Clerk''s API is dated more than five minutes ahead of the database''s clock' using errcode = 'CS003';
  end if;
  return context;
end
$$;

revoke all on function clerk_sync.begin_write(text, text, bigint, integer, clerk_sync.change_v1[], clerk_sync.deletion_v1[])
  from public, anon, authenticated, service_role;
